"""The names of the formats of other programs, apart from `guard.packs.importing`, which imports torch."""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal["saelens", "gemma-scope", "steer", "lineas", "linear-act"]
FORMATS: tuple[Format, ...] = get_args(Format)
