"""Steering vectors: x' = x + strength * vector, at every token.

Sources: activation addition, arXiv 2308.10248; difference of means, arXiv 2312.06681; the refusal direction,
arXiv 2406.11717. The vector carries its own size; the policy's strength multiplies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from torch import Tensor

from guard.interventions.fit_config import Pooling, Sites, SteeringConfig
from guard.interventions.method import SOURCE_AND_TARGET, Method, distance_to_target
from guard.kernels.edit_formula import EditRow
from guard.packs.edit_format import NoParameters, Origin, Rows, checked, parameters_of, save_edit, tensors_by_site
from guard.packs.format import Pack
from guard.site import Site

if TYPE_CHECKING:
    from typing import Unpack

NAME = "steer"
TENSORS = {"vector": 1}
Direction = Literal["difference", "principal"]


class SteerConfig(SteeringConfig):
    """The settings of `guard.fit.steer`."""

    sites: Sites = "auto"
    direction: Annotated[
        Direction, Field(description="Difference of means, or first component of pairs.")
    ] = "difference"
    pooling: Annotated[Pooling, Field(description="A sample: mean of a text, last token, or each token.")] = "mean"


def save_steer(path: Path, vectors: Mapping[Site, Tensor], **origin: Unpack[Origin]) -> Pack:
    """Write a pack of vectors [d]. Raises PackError."""
    tensors = {site: {"vector": vector} for site, vector in vectors.items()}
    return save_edit(path, NAME, tensors, NoParameters(), rows, **origin)


def rows(pack: Pack) -> Rows:
    """shift = vector. Raises PackError."""
    parameters_of(pack, NoParameters)
    return checked({site: EditRow(shift=tensors["vector"]) for site, tensors in tensors_by_site(pack, TENSORS).items()})


METHOD = Method(
    name=NAME, config=SteerConfig, fit="guard.fit.steer:run_fit_steer", rows=rows,
    paper=("2312.06681", "2308.10248", "2310.01405", "2406.11717"), data=SOURCE_AND_TARGET, edit="adds a vector",
    command="Fit steering vectors that move MODEL from the source texts of DATA towards its target texts.",
    outcome=distance_to_target,
)
