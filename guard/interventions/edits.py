"""From a pack to the rows of the edit formula, whatever its method."""

from __future__ import annotations

from guard.errors import PackError
from guard.interventions.registry import edit_methods
from guard.kernels.edit_formula import MAX_RANK
from guard.packs.edit_format import Rows
from guard.packs.format import Pack


def edit_rows(pack: Pack) -> Rows:
    """The checked edit row of every site of a pack, in the order of layers. Raises PackError."""
    header = pack.header
    if header.kind != "edit":
        raise PackError(f"a {header.kind} pack of the method {header.method} is not an edit pack")
    known = edit_methods()
    method = known.get(header.method)
    if method is None or method.rows is None:
        raise PackError(f"the method {header.method} is unknown; edit packs are of {', '.join(known)}")
    return method.rows(pack)


def check_fits(pack: Pack, *, width: int, num_layers: int, max_rank: int = MAX_RANK) -> None:
    """Raises PackError when a pack does not fit a model of `num_layers` layers and hidden size `width`, or a bank whose
    rows have at most `max_rank` features."""
    for site, row in edit_rows(pack).items():
        if site.layer >= num_layers:
            raise PackError(f"site {site}: the model has the layers 0..{num_layers - 1}")
        if row.width != width:
            raise PackError(f"site {site}: the pack is for hidden size {row.width}, the model has {width}")
        if row.rank > max_rank:
            raise PackError(f"site {site}: rank {row.rank} exceeds the {max_rank} of the edit bank")
