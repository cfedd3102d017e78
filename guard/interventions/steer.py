"""Steering vectors: x' = x + strength * vector, at every token.

Sources: activation addition, arXiv 2308.10248; difference of means, arXiv 2312.06681; the refusal direction,
arXiv 2406.11717. The vector carries its own size; the policy's strength multiplies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from torch import Tensor

from guard.kernels.edit_formula import EditRow
from guard.packs.edit_format import NoParameters, Origin, Rows, checked, parameters_of, save_edit, tensors_by_site
from guard.packs.format import Pack
from guard.site import Site

METHOD = "steer"
TENSORS = {"vector": 1}


def save_steer(path: Path, vectors: Mapping[Site, Tensor], **origin: Unpack[Origin]) -> Pack:
    """Write a pack of vectors [d]. Raises PackError."""
    tensors = {site: {"vector": vector} for site, vector in vectors.items()}
    return save_edit(path, METHOD, tensors, NoParameters(), rows, **origin)


def rows(pack: Pack) -> Rows:
    """shift = vector. Raises PackError."""
    parameters_of(pack, NoParameters)
    return checked({site: EditRow(shift=tensors["vector"]) for site, tensors in tensors_by_site(pack, TENSORS).items()})
