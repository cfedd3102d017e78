"""Edit packs: packs of kind `edit`, whose tensors belong to sites of the model and are named `SITE/NAME`.

`header.sites` lists the sites in the order of layers; each site holds the tensors of the method's schema, in float32 or
bfloat16, and nothing else lies in the pack. What the tensors mean is said by the method's module in
`guard.interventions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from torch import Tensor

from guard.errors import ConfigurationError, PackError
from guard.kernels.edit_formula import EditRow
from guard.packs.format import Pack, PackHeader, save_pack
from guard.site import MAX_SITES, Site

if TYPE_CHECKING:
    from typing import Unpack

STORED_DTYPES = (torch.float32, torch.bfloat16)
Config = TypeVar("Config", bound=BaseModel)
Rows = dict[Site, EditRow]


class Origin(TypedDict):
    """Where a pack comes from, as written into its header. `fit_data_digest` is a hex SHA-256."""

    model_fingerprint: str
    fit_data_digest: str
    fit_report: Mapping[str, JsonValue]
    licence: str


class NoParameters(BaseModel):
    """The configuration of a method whose tensors say everything."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def save_edit(
    path: Path, method: str, tensors: Mapping[Site, Mapping[str, Tensor]], parameters: BaseModel,
    rows: Callable[[Pack], Rows], **origin: Unpack[Origin],
) -> Pack:
    """Write an edit pack after `rows` has read it without an error. Raises PackError; nothing is written then."""
    # copies, because the same tensor may be given for several sites and the file format takes no shared memory
    named = {
        f"{site}/{name}": tensor.detach().cpu().contiguous().clone()
        for site in sorted(tensors) for name, tensor in tensors[site].items()
    }
    try:
        header = PackHeader(
            kind="edit", method=method, model_fingerprint=origin["model_fingerprint"],
            sites=tuple(str(site) for site in sorted(tensors)), parameters=parameters.model_dump(mode="json"),
            fit_data_digest=origin["fit_data_digest"], fit_report=dict(origin["fit_report"]), licence=origin["licence"],
        )
    except ValidationError as exc:
        raise PackError(f"the pack's header does not validate: {_fields(exc)}") from exc
    rows(Pack(header, named))
    return save_pack(path, header, named)


def tensors_by_site(
    pack: Pack, dimensions: Mapping[str, int], *, optional: Set[str] = frozenset()
) -> dict[Site, dict[str, Tensor]]:
    """The tensors of each site. `dimensions` gives the number of dimensions of each tensor of the method.

    Raises PackError for sites that are unknown or out of order, tensors that are missing, unexpected, empty, of another
    number of dimensions or of another dtype.
    """
    sites = _sites(pack.header)
    expected = {f"{site}/{name}" for site in sites for name in dimensions}
    missing = expected - {f"{site}/{name}" for site in sites for name in optional} - set(pack.tensors)
    unexpected = set(pack.tensors) - expected
    if missing or unexpected:
        what, names = ("lacks", missing) if missing else ("has unexpected", unexpected)
        raise PackError(f"a pack of the method {pack.header.method} {what} tensors: {', '.join(sorted(names)[:5])}")
    for name, tensor in pack.tensors.items():
        wanted = dimensions[name.rpartition("/")[2]]
        if tensor.dim() != wanted or tensor.numel() == 0:
            raise PackError(f"tensor {name} must have {wanted} dimensions and not be empty, got {list(tensor.shape)}")
        if tensor.dtype not in STORED_DTYPES:
            raise PackError(f"tensor {name} is {tensor.dtype}; edit packs hold float32 or bfloat16")
    return {
        site: {name: pack.tensors[f"{site}/{name}"] for name in dimensions if f"{site}/{name}" in pack.tensors}
        for site in sites
    }


def parameters_of(pack: Pack, config: type[Config]) -> Config:
    """The typed parameters of a pack. Raises PackError."""
    try:
        return config.model_validate(pack.header.parameters)
    except ValidationError as exc:
        raise PackError(f"the parameters of the method {pack.header.method} do not validate: {_fields(exc)}") from exc


def checked(rows: Rows) -> Rows:
    """The same rows. Raises PackError when a row's shapes do not fit together, its rank is too high or a number is not
    finite."""
    for site, row in rows.items():
        try:
            row.check()
        except ValueError as exc:
            raise PackError(f"site {site}: {exc}") from exc
    return rows


def _sites(header: PackHeader) -> tuple[Site, ...]:
    try:
        sites = tuple(Site.parse(text) for text in header.sites)
    except ConfigurationError as exc:
        raise PackError(f"the pack's sites: {exc}") from exc
    if not 0 < len(sites) <= MAX_SITES or header.sites != tuple(str(site) for site in sorted(set(sites))):
        raise PackError(f"a pack has 1 to {MAX_SITES} different sites in the order of layers")
    return sites


def _fields(error: ValidationError) -> str:
    return ", ".join(".".join(map(str, part["loc"])) or "header" for part in error.errors()[:5])
