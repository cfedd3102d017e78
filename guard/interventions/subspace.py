"""Subspace projection: what lies in the span of Q is removed, x' = m + (I - Q^T Q)(x - m).

With orthonormal rows Q [r, d] and a mean m [d] (0 when absent):
  m = 0, r = 1      directional ablation, arXiv 2406.11717
  m = 0, r > 1      projection on the complement of a concept subspace, as SAFREE's I - P_C, arXiv 2410.12761 eq. 3,
                    here on hidden states instead of text embeddings
  m != 0            affine concept erasure: what is left lies where the mean does, arXiv 2411.09003

With `keep_norm`, x' is made as long as x was, as in GUARD-IT's edit (arXiv 2605.12765), here for any basis and mean.
Computed as x - (Qx - Qm) Q, never with a d x d matrix. Keep Q in float32: rounding to bfloat16 breaks orthonormality.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor

from guard.errors import PackError
from guard.interventions.fit_config import ConceptConfig, Pooling
from guard.interventions.method import FORGET_AND_RETAIN, Method
from guard.kernels.edit_formula import ALWAYS, MAX_RANK, EditRow
from guard.packs.edit_format import Origin, Rows, checked, parameters_of, save_edit, tensors_by_site
from guard.packs.format import Pack
from guard.site import Site

if TYPE_CHECKING:
    from typing import Unpack

NAME = "subspace"
TENSORS = {"basis": 2, "mean": 1}
# largest deviation of Q Q^T from the identity
ORTHONORMAL_TOLERANCE = 1e-4
BasisKind = Literal["contrast", "energy", "difference"]


class ProjectionConfig(BaseModel):
    """`keep_norm`: see the module. It stands in a header only where it is set: other packs keep their hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep_norm: Annotated[bool, Field(exclude_if=lambda value: not value)] = False


class SubspaceConfig(ConceptConfig):
    """The settings of `guard.fit.subspace`; `kind` and `ridge` as in `guard.fit.concept_basis`, `clusters` as in
    `guard.fit.concept_clusters`. Settings that came later are recorded only where they are set: recipes without them
    are not fitted again."""

    kind: Annotated[
        BasisKind,
        Field(description="Directions: most concept for the retain variance, most concept, or between both means."),
    ] = "contrast"
    energy: Annotated[float, Field(gt=0.0, le=1.0, description="Share of the concept's energy to keep.")] = 0.95
    max_rank: Annotated[int, Field(ge=1, le=MAX_RANK, description="Most directions removed at a site.")] = 4
    ridge: Annotated[float, Field(gt=0.0, le=1e6, description="`contrast`: smaller spares retain texts more.")] = 0.5
    affine: Annotated[bool, Field(description="Project around the retain mean instead of around zero.")] = True
    pooling: Annotated[Pooling, Field(description="Every token of a text, their mean, or the last one.")] = "tokens"
    keep_norm: Annotated[
        bool,
        Field(exclude_if=lambda value: not value, description="Make a projected state as long as it was before."),
    ] = False
    clusters: Annotated[
        int,
        Field(
            ge=1, le=MAX_RANK, exclude_if=lambda value: value == 1,
            description="Clusters of the forget texts (k-means), each with directions of its own.",
        ),
    ] = 1

    @field_validator("clusters")
    @classmethod
    def _a_direction_for_each(cls, clusters: int, info: ValidationInfo) -> int:
        most = info.data.get("max_rank", MAX_RANK)
        if clusters > most:
            raise ValueError(f"{clusters} clusters need a max_rank of at least {clusters}, not {most}")
        return clusters


def save_subspace(
    path: Path, bases: Mapping[Site, Tensor], means: Mapping[Site, Tensor] | None = None, *, keep_norm: bool = False,
    **origin: Unpack[Origin],
) -> Pack:
    """Write a pack of orthonormal bases [r, d] with optional means [d] of the same sites. Raises PackError."""
    tensors = {site: {"basis": basis} for site, basis in bases.items()}
    for site, mean in (means or {}).items():
        if site not in tensors:
            raise PackError(f"a mean is given for {site}, but no basis")
        tensors[site]["mean"] = mean
    return save_edit(path, NAME, tensors, ProjectionConfig(keep_norm=keep_norm), rows, **origin)


def rows(pack: Pack) -> Rows:
    """read = write = Q, bias = -Q m, gain -1 always. Raises PackError, also when Q is not orthonormal."""
    config = parameters_of(pack, ProjectionConfig)
    found = {}
    for site, tensors in tensors_by_site(pack, TENSORS, optional={"mean"}).items():
        try:
            found[site] = projection_row(tensors["basis"], tensors.get("mean"), keep_norm=config.keep_norm)
        except ValueError as exc:
            raise PackError(f"site {site}: {exc}") from exc
    return checked(found)


def projection_row(basis: Tensor, mean: Tensor | None = None, *, keep_norm: bool = False) -> EditRow:
    """The edit row of a basis [r, d] with orthonormal rows and a mean [d]. Raises ValueError."""
    rank, width = basis.shape
    if mean is not None and mean.shape != (width,):
        raise ValueError(f"mean must be {[width]}, got {list(mean.shape)}")
    gram = basis.double() @ basis.double().T
    deviation = float((gram - torch.eye(rank, dtype=torch.float64)).abs().max())
    # written so that NaN is refused too
    if not deviation <= ORTHONORMAL_TOLERANCE:
        raise ValueError(f"the basis is not orthonormal: Q Q^T differs from the identity by {deviation:.2g}")
    bias = torch.zeros(rank) if mean is None else -(basis.float() @ mean.float())
    return EditRow(
        read=basis, write=basis, bias=bias, gain=torch.full((rank,), -1.0), offset=torch.zeros(rank),
        threshold=torch.full((rank,), ALWAYS), keep_norm=keep_norm,
    )


METHOD = Method(
    name=NAME, config=SubspaceConfig, fit="guard.fit.subspace:run_fit_subspace", rows=rows,
    paper=("2410.12761", "2411.09003", "2406.11717", "2605.12765"), data=FORGET_AND_RETAIN,
    edit="removes the directions of a concept",
    command=(
        "Find the subspace in which the forget texts of DATA lie in MODEL, and write the projection that removes it."
    ),
)
