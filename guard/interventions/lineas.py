"""LinEAS and Linear-AcT: one affine map per channel, T(x) = weight * x + bias.

Sources: LinEAS arXiv 2503.10679, Linear-AcT arXiv 2410.23054. Strength s blends with the identity,
(1 + s * (weight - 1)) * x + s * bias, which is the edit formula with scale = weight - 1 and shift = bias.

Both papers put maps at norm outputs (`attn_norm`, `mlp_norm`). Linear-AcT's quantile mask (identity outside the range
of activations seen while fitting) is not affine and is not served: a served Linear-AcT map acts on every activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Unpack

from torch import Tensor

from guard.errors import PackError
from guard.kernels.edit_formula import EditRow
from guard.packs.edit_format import NoParameters, Origin, Rows, checked, parameters_of, save_edit, tensors_by_site
from guard.packs.format import Pack
from guard.site import Site

Method = Literal["lineas", "linear-act"]
TENSORS = {"weight": 1, "bias": 1}


def save_lineas(
    path: Path, maps: Mapping[Site, tuple[Tensor, Tensor]], *, method: Method = "lineas", **origin: Unpack[Origin]
) -> Pack:
    """Write a pack of maps (weight [d], bias [d]). Raises PackError."""
    tensors = {site: {"weight": weight, "bias": bias} for site, (weight, bias) in maps.items()}
    return save_edit(path, method, tensors, NoParameters(), rows, **origin)


def rows(pack: Pack) -> Rows:
    """scale = weight - 1 in float32, shift = bias. Raises PackError."""
    parameters_of(pack, NoParameters)
    found = {}
    for site, tensors in tensors_by_site(pack, TENSORS).items():
        if tensors["weight"].shape != tensors["bias"].shape:
            raise PackError(f"site {site}: weight and bias differ in length")
        found[site] = EditRow(scale=tensors["weight"].float() - 1.0, shift=tensors["bias"])
    return checked(found)
