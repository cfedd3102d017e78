"""A dossier in the terminal: a progress bar while the model is asked, a table, and rows to strike out."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from guard.errors import ConfigurationError
from guard.service.cli.options import console
from guard.service.dossier.dossier import Dossier

MAX_SHOWN = 110
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


class ProgressSteps:
    """A bar on standard error whose end moves as further questions come up; `guard.service.dossier.interview.Steps`."""

    def __init__(self, title: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=Console(stderr=True, highlight=False), transient=True,
        )
        self._task = self._progress.add_task(title, total=None)
        self._total = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def expect(self, count: int) -> None:
        """`count` more requests will be sent."""
        self._total += count
        self._progress.update(self._task, total=self._total)

    def advance(self) -> None:
        """One of them is answered."""
        self._progress.advance(self._task)


def reviewed(dossier: Dossier, *, yes: bool) -> Dossier:
    """Show the dossier; without `yes` ask which rows to strike out until the answer can be read.

    Raises ConfigurationError when nobody answers.
    """
    if not dossier.rows:
        return dossier
    show(dossier)
    while not yes:
        try:
            answer = typer.prompt(
                "Rows to strike out (like 3 7-9), enter to accept, q to leave", default="", show_default=False
            )
        except typer.Abort:
            raise ConfigurationError("nobody answered: add --yes to accept all rows") from None
        if answer.strip().casefold() == "q":
            raise typer.Abort
        numbers = struck_out(answer, len(dossier.rows))
        if numbers is not None:
            return dossier.without(numbers)
        typer.echo(f"Give numbers from 1 to {len(dossier.rows)}, like 3 7-9", err=True)
    return dossier


def struck_out(answer: str, rows: int) -> frozenset[int] | None:
    """The numbers in an answer, separated by spaces or commas, ranges with a dash; None when it cannot be read."""
    numbers: set[int] = set()
    for part in re.split(r"[\s,;]+", answer.strip()):
        match = _RANGE.fullmatch(part)
        if part and match is None:
            return None
        if match is not None:
            first = int(match[1])
            last = int(match[2] or first)
            if not 1 <= first <= last <= rows:
                return None
            numbers.update(range(first, last + 1))
    return frozenset(numbers)


def show(dossier: Dossier) -> None:
    """Print the rows of a dossier, numbered."""
    table = Table(title=Text(f"{dossier.name} ({dossier.kind})"), box=None, pad_edge=False, title_justify="left")
    table.add_column("", justify="right")
    table.add_column("field", no_wrap=True)
    table.add_column("text", ratio=3)
    table.add_column("why", ratio=2)
    previous = ""
    for number, row in enumerate(dossier.rows, start=1):
        shown = row.shown or row.text
        # Text, because what a model says must not be read as markup
        table.add_row(
            str(number), row.field if row.field != previous else "", Text(_short(shown)), Text(_short(row.note))
        )
        previous = row.field
    console().print(table)


def _short(text: str) -> str:
    line = " ".join("".join(character for character in text if character.isprintable() or character.isspace()).split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 1] + "\u2026"
