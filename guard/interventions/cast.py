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
from typing import Unpack

import torch
from torch import Tensor

from guard.errors import PackError
from guard.kernels.edit_formula import EditRow
from guard.packs.edit_format import NoParameters, Origin, Rows, checked, parameters_of, save_edit, tensors_by_site
from guard.packs.format import Pack
from guard.site import Site

METHOD = "cast"
TENSORS = {"condition": 2, "bias": 1, "threshold": 1, "behaviour": 2}


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
    return save_edit(path, METHOD, tensors, NoParameters(), rows, **origin)


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
