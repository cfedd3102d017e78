"""One subspace for a concept of several topics: the directions of each cluster of its texts, made orthonormal together.

A person's books and a person's family lie in different directions, and the mean of both lies in neither. Forget texts
are clustered by k-means over the directions in which their mean states lie from the retain mean, as GUARD-IT (arXiv
2605.12765) clusters a forget set. Each cluster gives directions of its own against the retain states; all of them span
the subspace that is removed, whatever cluster a prompt belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import faiss
import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.concept_basis import ConceptBasis, concept_basis
from guard.fit.concept_states import ConceptStates
from guard.interventions.subspace import SubspaceConfig

_ROUNDS, _STARTS = 50, 10
# a singular value this small against the largest: the direction is there already
_NEW_DIRECTION = 1e-3


def clustered_basis(states: ConceptStates, config: SubspaceConfig) -> ConceptBasis:
    """The basis of `config.clusters` clusters, at most `config.max_rank` directions. Raises ConfigurationError."""
    concept, mean = states.forget.float(), states.retain.float().mean(dim=0)
    of_text = text_clusters(concept - mean, states.forget_lengths, config.clusters, config.seed)
    of_state = of_text.repeat_interleave(torch.tensor(states.forget_lengths))
    found = [
        concept_basis(
            concept[of_state == cluster], states.retain, config.kind, energy=config.energy,
            max_rank=config.max_rank // config.clusters, ridge=config.ridge,
        )
        for cluster in of_text.unique().tolist()
    ]
    basis = joint_basis(concept - mean, [part.basis for part in found])
    return replace(basis, cluster_texts=tuple(of_text.unique(return_counts=True)[1].tolist()))


def text_clusters(centred: Tensor, lengths: Sequence[int], clusters: int, seed: int) -> Tensor:
    """The cluster of each text, int64 [n], of states [N, d] around the retain mean, `lengths` of which belong to each
    text. Clusters count from 0 in the order of their first texts. Raises ConfigurationError for too few texts."""
    if len(lengths) < clusters:
        raise ConfigurationError(f"{len(lengths)} forget texts do not make {clusters} clusters; lower --clusters")
    means = torch.stack([part.mean(dim=0) for part in centred.float().split(list(lengths))])
    points = torch.nn.functional.normalize(means, dim=1).numpy()
    search = faiss.Kmeans(
        points.shape[1], clusters, niter=_ROUNDS, nredo=_STARTS, seed=seed & 0x7FFFFFFF, min_points_per_centroid=1,
    )
    search.train(points)
    nearest = torch.from_numpy(search.index.search(points, 1)[1][:, 0])
    # k-means numbers them at will
    order = list(dict.fromkeys(nearest.tolist()))
    return torch.tensor([order.index(cluster) for cluster in nearest.tolist()])


def joint_basis(centred: Tensor, bases: Sequence[Tensor]) -> ConceptBasis:
    """Orthonormal directions of the span of all `bases` [r, d], those that keep most of the states [N, d] first."""
    _, values, right = torch.linalg.svd(torch.cat(list(bases)).double(), full_matrices=False)
    span = right[values > _NEW_DIRECTION * values[0]]
    inside = centred.double() @ span.T
    energies, turn = torch.linalg.eigh(inside.T @ inside)
    energies = energies.flip(0).clamp_min(0.0)
    rest = (centred.double().square().sum() - energies.sum()).clamp_min(0.0)
    return ConceptBasis((turn.flip(1).T @ span).float(), torch.cat([energies, rest[None]]).float())
