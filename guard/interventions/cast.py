"""Conditional steering: a behaviour vector is added where a condition vector is present.

Source: CAST, arXiv 2409.05907. Served here, for pairs i = 1..r at one site:

    x' = x + strength * sum_i [<condition_i, x> + bias_i > threshold_i] * behaviour_i

This differs from the paper, which compares once per prompt, at a condition layer, the cosine between the mean hidden
state of the prompt's tokens and its (tanh-squashed) projection on the condition, and then steers every token at other
layers. Here each token is compared by itself, at the layer where it is steered, by a dot product and not by a cosine:
thresholds of the paper's code do not carry over and must be fitted to dot products. Whether a whole prompt meets a
condition is the detector's decision. Pairs are independent: two that share a behaviour add it twice where both fire.
The push has the size of the behaviour vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from guard.errors import PackError
from guard.interventions.fit_config import ConceptConfig
from guard.interventions.method import FORGET_AND_RETAIN, Method
from guard.kernels.edit_formula import EditRow
from guard.packs.edit_format import NoParameters, Origin, Rows, checked, parameters_of, save_edit, tensors_by_site
from guard.packs.format import Pack
from guard.site import Site

if TYPE_CHECKING:
    from typing import Unpack

NAME = "cast"
TENSORS = {"condition": 2, "bias": 1, "threshold": 1, "behaviour": 2}


class CastConfig(ConceptConfig):
    """The settings of `guard.fit.cast`."""

    condition: Annotated[
        Literal["discriminant", "difference"], Field(description="Direction between both means, whitened or not.")
    ] = "discriminant"
    ridge: Annotated[
        float, Field(gt=0.0, le=1e6, description="`discriminant`: larger comes nearer to `difference`.")
    ] = 0.5
    scale: Annotated[
        float, Field(ge=0.0, le=1000.0, description="Length of the push in distances between the means.")
    ] = 10.0
    grid_points: Annotated[int, Field(ge=2, le=10_000, description="Thresholds tried.")] = 201


@dataclass(frozen=True, slots=True)
class Condition:
    """When to steer at one site: vector [r, d], threshold [r], bias [r] (0 when absent)."""

    vector: Tensor
    threshold: Tensor
    bias: Tensor | None = None


def save_cast(
    path: Path, conditions: Mapping[Site, Condition], behaviours: Mapping[Site, Tensor], **origin: Unpack[Origin]
) -> Pack:
    """Write a pack of conditions and behaviour vectors [r, d] of the same sites. Raises PackError."""
    if set(conditions) != set(behaviours):
        raise PackError("conditions and behaviours must be given for the same sites")
    tensors = {
        site: {
            "condition": condition.vector, "threshold": condition.threshold, "behaviour": behaviours[site],
            "bias": torch.zeros_like(condition.threshold) if condition.bias is None else condition.bias,
        }
        for site, condition in conditions.items()
    }
    return save_edit(path, NAME, tensors, NoParameters(), rows, **origin)


def rows(pack: Pack) -> Rows:
    """read = condition, write = behaviour, gain 0, offset 1. Raises PackError."""
    parameters_of(pack, NoParameters)
    found = {}
    for site, tensors in tensors_by_site(pack, TENSORS).items():
        rank = tensors["condition"].shape[0]
        found[site] = EditRow(
            read=tensors["condition"], write=tensors["behaviour"], bias=tensors["bias"],
            threshold=tensors["threshold"], gain=torch.zeros(rank), offset=torch.ones(rank),
        )
    return checked(found)


METHOD = Method(
    name=NAME, config=CastConfig, fit="guard.fit.cast:run_fit_cast", rows=rows, paper=("2409.05907",),
    data=FORGET_AND_RETAIN, edit="pushes the tokens that show a concept away from it",
    command=(
        "Find the condition that tells the forget texts of DATA from the others, and steer away from them where it "
        "holds.\n\nTexts with the label `behaviour` show what MODEL should do instead; without any, the push goes to "
        "the retain texts."
    ),
)
