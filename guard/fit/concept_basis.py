"""Orthonormal bases of a concept: the directions in which its hidden states lie away from those of other texts.

  energy       right singular vectors of the concept's states minus the retain mean (arXiv 2410.12761 on hidden states)
  contrast     generalised eigenvectors: most concept power for the retain variance that goes with it. With
               W = (Sigma_R + ridge * mean variance * I)^(-1/2), the leading eigenvectors of W C W, mapped back by W
               and made orthonormal. A large ridge gives `energy`; a small one spares whatever retain texts vary in.
  difference   the unit vector between both means (refusal direction, arXiv 2406.11717); rank 1

The rank is the smallest one that keeps a share of the energy (singular values squared, or eigenvalues), up to a limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.interventions.subspace import BasisKind


@dataclass(frozen=True, slots=True)
class ConceptBasis:
    """`basis` [r, d], orthonormal rows, float32; `spectrum`, the energies of its directions in falling order, then
    those of all others; `cluster_texts`, the number of texts of each cluster of which it was made, if any."""

    basis: Tensor
    spectrum: Tensor
    cluster_texts: tuple[int, ...] = ()

    @property
    def kept(self) -> float:
        """Share of the energy that the basis keeps."""
        return float(self.spectrum[: len(self.basis)].sum() / self.spectrum.sum())


def concept_basis(
    concept: Tensor, retain: Tensor, kind: BasisKind, *, energy: float, max_rank: int, ridge: float
) -> ConceptBasis:
    """The basis of concept states [n, d] against retain states [m, d]. Raises ConfigurationError for equal means."""
    mean = retain.double().mean(dim=0)
    centred = concept.double() - mean
    if kind == "difference":
        return difference_basis(centred)
    if kind == "contrast":
        return contrast_basis(centred, retain.double() - mean, energy=energy, max_rank=max_rank, ridge=ridge)
    return energy_basis(centred, energy=energy, max_rank=max_rank)


def energy_basis(centred: Tensor, *, energy: float, max_rank: int) -> ConceptBasis:
    """Singular directions of rows [n, d] that already have the mean taken off."""
    _, values, right = torch.linalg.svd(centred.double(), full_matrices=False)
    spectrum = values.square()
    return ConceptBasis(right[: energy_rank(spectrum, energy, max_rank)].float(), spectrum.float())


def contrast_basis(centred: Tensor, retain: Tensor, *, energy: float, max_rank: int, ridge: float) -> ConceptBasis:
    """Generalised directions of rows [n, d] against `retain` [m, d]; the retain mean is taken off both."""
    covariance = retain.double().T @ retain.double() / len(retain)
    width = covariance.shape[0]
    level = float(covariance.diagonal().mean())
    values, vectors = torch.linalg.eigh(covariance + ridge * level * torch.eye(width, dtype=torch.float64))
    whitening = (vectors * values.clamp_min(1e-12 * max(level, 1e-300)).rsqrt()) @ vectors.T
    power = centred.double().T @ centred.double() / len(centred)
    spectrum, directions = torch.linalg.eigh(whitening @ power @ whitening)
    spectrum, directions = spectrum.flip(0).clamp_min(0.0), directions.flip(1)
    rank = energy_rank(spectrum, energy, max_rank)
    basis, _ = torch.linalg.qr(whitening @ directions[:, :rank])
    return ConceptBasis(basis.T.float().contiguous(), spectrum.float())


def difference_basis(centred: Tensor) -> ConceptBasis:
    """The unit vector along the mean of rows [n, d]; the energy is that of the mean against all."""
    mean = centred.double().mean(dim=0)
    norm = mean.norm()
    # equal means differ by rounding
    if not float(norm) > 1e-9 * float(centred.double().square().mean().sqrt()):
        raise ConfigurationError("the concept's mean equals the retain mean; there is no direction between them")
    inside = (centred.double() @ (mean / norm)).square().sum()
    rest = (centred.double().square().sum() - inside).clamp_min(0.0)
    return ConceptBasis((mean / norm)[None].float(), torch.stack([inside, rest]).float())


def energy_rank(spectrum: Tensor, energy: float, max_rank: int) -> int:
    """The smallest rank whose share of the sum of `spectrum` (falling order) is at least `energy`, up to `max_rank`.

    Raises ConfigurationError for a spectrum of zeros.
    """
    total = float(spectrum.sum())
    if not total > 0.0:
        raise ConfigurationError("the concept's states equal the retain mean; there is nothing to remove")
    # directions without energy are arbitrary and never kept
    filled = int((spectrum > 1e-10 * float(spectrum[0])).sum())
    enough = int((spectrum.cumsum(0) / total < energy - 1e-12).sum()) + 1
    return min(enough, filled, max_rank)


def removed_share(states: Tensor, mean: Tensor, basis: Tensor) -> float:
    """Share of the energy of states [n, d] around `mean` that lies in `basis`: what a projection takes away."""
    centred = states.float() - mean.float()
    return float((centred @ basis.T).square().sum() / centred.square().sum().clamp_min(1e-30))
