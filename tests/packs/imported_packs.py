"""Sizes of the synthetic sources of imported packs, and what a pack does once it is imported."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from guard.interventions.edits import edit_rows
from guard.interventions.sae import SaeConfig
from guard.kernels.edit_formula import edited
from guard.packs.format import load_pack
from guard.packs.import_formats import Format
from guard.packs.importing import Choice, import_pack
from guard.site import Site

WIDTH, FEATURES, TOKENS, LAYERS = 24, 40, 32, 6
CHOSEN = (3, 17, 22, 39)
VALUE = 2.5
CLAMP = Choice(features=CHOSEN, config=SaeConfig(value=VALUE))


def imported(
    source_format: Format, source: Path, model: Path, choice: Choice, x: Tensor, site: str = "2.resid_post"
) -> Tensor:
    """Import, read from disk, and edit `x` at `site`."""
    out = source.parent / "out"
    import_pack(source_format, source, out, model=model, choice=choice, licence="MIT")
    return edited(x, edit_rows(load_pack(out))[Site.parse(site)])
