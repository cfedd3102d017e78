"""SAFREE on input embeddings: tokens near a concept are replaced by what the rest of the prompt says about them.

Source: arXiv 2410.12761, sections 3.1 to 3.3, made for the text encoder of a diffusion model; here for the embedding
rows of a language model, which need no forward pass. Rows are centred, e~ = E[t] - mu, since embedding tables are
anisotropic. With orthonormal bases Q_C of the concept and Q_S of the window's safe tokens:

  trigger    d_i = |(I - P_C)(S - e~_i)| / (n - 1), S = sum_j e~_j: the distance from the concept of the mean of the
             other tokens. Token i is a trigger when d_i >= (1 + alpha) mean_{j != i} d_j and |Q_C e~_i|^2 / |e~_i|^2 >=
             kappa. The relative test alone always finds someone in short prompts.
  replace    e~_i' = rho_i (I - P_C) P_S e~_i, rho_i restoring the norm; row = mu + e~_i'
  validate   beta = 1 - mean cos(e~_i, (I - P_C) P_S e~_i); strength = sigmoid(2 k (10 beta - t))

(I - P_C) P_S e, the paper's order, is orthogonal to the concept but leaves the span of the safe tokens;
`projector="exact"` gives the orthogonal projection on the part of that span that is orthogonal to the concept.

Static embeddings hold words and not facts: this finds a concept by its surface form only. Rows are ordinary tokens of
one prompt, float32 [n, d]; nothing of size d x d is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Projector = Literal["paper", "exact"]
# singular values below this share of the largest count as zero
RANK_TOLERANCE = 1e-5


class SafreeConfig(BaseModel):
    """`alpha`, `kappa`: relative and absolute trigger test; `window`: tokens judged together; `max_safe`: largest rank
    of the safe tokens' span; `projector`: see the module."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    alpha: Annotated[float, Field(ge=-1.0, le=10.0)] = 0.01
    kappa: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    window: Annotated[int, Field(ge=2, le=512)] = 32
    max_safe: Annotated[int, Field(ge=1, le=512)] = 16
    projector: Projector = "paper"


@dataclass(frozen=True, slots=True)
class Concept:
    """`center` mu [d] and `basis` Q_C [r, d] with orthonormal rows, float32."""

    center: Tensor
    basis: Tensor


@dataclass(frozen=True, slots=True)
class Validation:
    """Self-validation: `steepness` k and `midpoint` t of strength = sigmoid(2 k (10 beta - t))."""

    steepness: float
    midpoint: float


@dataclass(frozen=True, slots=True)
class Replacement:
    """`positions` int64 [m] and their new `rows` [m, d]; `erase` int64 holds triggers without a safe token in their
    window, which a caller erases or refuses; `beta` is NaN when nothing is replaced."""

    positions: Tensor
    rows: Tensor
    erase: Tensor
    beta: float


def replace(rows: Tensor, concept: Concept, config: SafreeConfig, validation: Validation | None = None) -> Replacement:
    """The replacement rows of the triggers among `rows` [n, d], uncentred embedding rows of ordinary tokens."""
    centred = rows.float() - concept.center
    flagged = triggers(centred, concept.basis, config)
    filtered, possible = _filtered(centred, flagged, concept.basis, config)
    done, erase = flagged & possible, flagged & ~possible
    before, after = centred[done], filtered[done]
    beta = float(1.0 - torch.cosine_similarity(before, after, dim=-1).mean()) if bool(done.any()) else math.nan
    after = after * (before.norm(dim=-1, keepdim=True) / after.norm(dim=-1, keepdim=True))
    if validation is not None and not math.isnan(beta):
        after = before + strength(beta, validation) * (after - before)
    return Replacement(done.nonzero().flatten(), concept.center + after, erase.nonzero().flatten(), beta)


def triggers(centred: Tensor, basis: Tensor, config: SafreeConfig) -> Tensor:
    """Which of the rows [n, d] pass both tests, bool [n]. Each row is judged once, in the window around it; a row that
    is alone has no others to be compared with and passes the relative test."""
    flagged = concept_share(centred, basis) >= config.kappa
    for window, core in windows(len(centred), config.window):
        inside = slice(core.start - window.start, core.stop - window.start)
        flagged[core] &= relative_test(centred[window], basis, config.alpha)[inside]
    return flagged


def relative_test(centred: Tensor, basis: Tensor, alpha: float) -> Tensor:
    """d_i >= (1 + alpha) mean_{j != i} d_j for the rows [n, d] of one window, bool [n]; all true when n = 1."""
    count = len(centred)
    if count < 2:
        return torch.ones(count, dtype=torch.bool, device=centred.device)
    distances = leave_one_out(centred, basis)
    others: Tensor = (distances.sum() - distances) / (count - 1)
    return distances >= others * (1.0 + alpha)


def leave_one_out(centred: Tensor, basis: Tensor) -> Tensor:
    """d_i [n] of rows [n, d], n >= 2: the norm of (I - P_C) applied to the mean of the other rows, in closed form."""
    outside = without(centred, basis)
    others: Tensor = (outside.sum(dim=0) - outside).norm(dim=-1)
    return others / (len(centred) - 1)


def concept_share(centred: Tensor, basis: Tensor) -> Tensor:
    """|Q_C e|^2 / |e|^2 in [0, 1] for each row [n, d]; 0 for a row of zeros."""
    inside = (centred @ basis.T).square().sum(dim=-1)
    return inside / centred.square().sum(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)


def without(rows: Tensor, basis: Tensor) -> Tensor:
    """(I - P_C) applied to rows [n, d]."""
    return rows - (rows @ basis.T) @ basis


def project(rows: Tensor, safe: Tensor, basis: Tensor, projector: Projector) -> Tensor:
    """The filtered rows [n, d]. `safe` [q, d] and `basis` [r, d] are orthonormal: safe tokens, concept.

    paper: (I - P_C) P_S e. exact: B^T B e, B = null(Q_C Q_S^T)^T Q_S spans what lies in S and is orthogonal to C.
    """
    if projector == "paper":
        return without((rows @ safe.T) @ safe, basis)
    _, values, right = torch.linalg.svd(basis @ safe.T, full_matrices=True)  # [r, q]
    rank = int((values > RANK_TOLERANCE).sum())
    inside: Tensor = right[rank:] @ safe  # [q - rank, d]
    return (rows @ inside.T) @ inside


def safe_basis(rows: Tensor, max_rank: int) -> Tensor:
    """Orthonormal basis [q, d] of the strongest directions of rows [n, d], q <= max_rank; [0, d] for no rows."""
    if not len(rows):
        return rows
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    kept = int((values > RANK_TOLERANCE * values[0]).sum()) if float(values[0]) > 0 else 0
    strongest: Tensor = right[: min(kept, max_rank)]
    return strongest


def self_validation(rows: Tensor, concept: Concept, config: SafreeConfig) -> float:
    """beta over all rows [n, d] of a prompt, triggers or not; rows without a safe token count as orthogonal."""
    centred = rows.float() - concept.center
    filtered, _ = _filtered(centred, triggers(centred, concept.basis, config), concept.basis, config)
    return float(1.0 - torch.cosine_similarity(centred, filtered, dim=-1).mean())


def strength(beta: float, validation: Validation) -> float:
    """sigmoid(2 k (10 beta - t)) in (0, 1)."""
    return float(torch.sigmoid(torch.tensor(2.0 * validation.steepness * (10.0 * beta - validation.midpoint))))


def windows(count: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Overlapping windows of `size` of `count` rows, each with its core; the cores are disjoint and cover all rows."""
    if count <= size:
        if count:
            yield slice(0, count), slice(0, count)
        return
    starts = [*range(0, count - size, max(1, size // 2)), count - size]
    # between two windows the border lies in the middle of what they share
    borders = [0, *((a + b + size) // 2 for a, b in zip(starts, starts[1:], strict=False)), count]
    for index, start in enumerate(starts):
        yield slice(start, start + size), slice(borders[index], borders[index + 1])


def _filtered(centred: Tensor, flagged: Tensor, basis: Tensor, config: SafreeConfig) -> tuple[Tensor, Tensor]:
    """The filtered rows [n, d] without rescaling, and where filtering leaves something, bool [n]."""
    filtered = torch.zeros_like(centred)
    for window, core in windows(len(centred), config.window):
        safe = safe_basis(centred[window][~flagged[window]], config.max_safe)
        if len(safe):
            filtered[core] = project(centred[core], safe, basis, config.projector)
    left = filtered.norm(dim=-1)
    return filtered, left > RANK_TOLERANCE * centred.norm(dim=-1)
