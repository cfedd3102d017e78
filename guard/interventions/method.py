"""What the registry knows of a method: its name, its settings, its fit, the rows of its packs, its paper."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from guard.interventions.fit_config import FitConfig, ModelDtype

if TYPE_CHECKING:
    from guard.packs.edit_format import Rows
    from guard.packs.format import Pack

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_FIT = re.compile(r"guard\.fit\.[a-z0-9_]+:[a-z0-9_]+")
_ARXIV = re.compile(r"[0-9]{4}\.[0-9]{5}")


class Fit(Protocol):
    """From files to a pack: a model folder and the data that the method reads. Report, picture, state and the pack, a
    folder named after the method, are written into `out`. Raises GuardError."""

    def __call__(
        self, model: Path, data: Path, out: Path, config: Any, *, device: str = "cpu", dtype: ModelDtype = "float32",
        licence: str = "unknown", show_progress: bool = True,
    ) -> Pack: ...


@dataclass(frozen=True, slots=True)
class FitData:
    """What a fit reads: `name` in a few words, `lines` as one sentence about its JSON Lines."""

    name: str
    lines: str


SOURCE_AND_TARGET = FitData(
    "source and target texts", "JSON Lines with `text`, `label` (source, target), perhaps `prompt`."
)
FORGET_AND_RETAIN = FitData(
    "forget and retain texts", "JSON Lines with `text`, as the model sees it, and `label`: forget or retain."
)


def pack_sites(pack: Pack) -> str:
    """The sites of a pack, for the last line of a fit."""
    return ", ".join(pack.header.sites)


def distance_to_target(pack: Pack) -> str:
    """What a fit on source and target texts measured, for its last line."""
    report = pack.header.fit_report
    return f"distance to the target {report['cost_before']} -> {report['cost_after']} on {report['measured_on']}"


@dataclass(frozen=True, slots=True)
class Method:
    """One method, told once; commands, recipes, dispatch and documentation are made from it.

    `name`: of the command, of recipes and of packs. `config`: the settings of the fit. `fit`: `module:function`, which
    is imported when it is asked for, since fits load transformers; the function is a `Fit`. `rows`: from a pack to
    the rows of the edit formula, None for a method whose packs are no edits; no recipe makes these. `paper`: arXiv
    numbers, the main one first. `data`: what the fit reads. `edit`: what a pack does, in a few words. `command`: the
    help of the command. `outcome`: what the last line of a fit says about the pack.

    Raises ValueError for a name, a reference or a number of another form.
    """

    name: str
    config: type[FitConfig]
    fit: str
    rows: Callable[[Pack], Rows] | None
    paper: tuple[str, ...]
    data: FitData
    edit: str
    command: str
    outcome: Callable[[Pack], str] = pack_sites

    def __post_init__(self) -> None:
        for form, text in ((_NAME, self.name), (_FIT, self.fit), *((_ARXIV, number) for number in self.paper)):
            if not form.fullmatch(text):
                raise ValueError(f"the method {self.name}: {text!r} is not of the form {form.pattern}")

    def load_fit(self) -> Fit:
        """Import the fit. Raises ImportError or AttributeError when there is none."""
        module, _, function = self.fit.partition(":")
        return cast("Fit", getattr(importlib.import_module(module), function))
