"""A dossier: what is known of a target, row by row, so that a person can accept it or strike rows out."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from guard.classifiers.normalize import mask_form
from guard.policy import Kind, Target

Field = Literal["aliases", "forbid", "answers", "examples", "neighbours", "verbatim"]
FIELDS: tuple[Field, ...] = ("aliases", "forbid", "answers", "examples", "neighbours", "verbatim")


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of a target's field and why it is there; `shown` stands for a text too long to print."""

    field: Field
    text: str
    note: str = ""
    shown: str = ""


@dataclass(frozen=True, slots=True)
class Dossier:
    """Rows about one name. `known` says whether the model said anything of it that it does not say of made-up names."""

    name: str
    kind: Kind
    rows: tuple[Row, ...] = ()
    known: bool = True
    verbatim_words: int = 8

    def without(self, numbers: Collection[int]) -> Dossier:
        """The dossier without the rows of these numbers, which count from 1."""
        kept = tuple(row for number, row in enumerate(self.rows, start=1) if number not in numbers)
        return replace(self, rows=kept)

    def of(self, field: Field) -> tuple[str, ...]:
        """The texts of one field."""
        return tuple(row.text for row in self.rows if row.field == field)

    def target(self) -> Target:
        """The dossier as an entry of a forget-list.

        Without phrases to forbid the field stays away, so that the list's default (key phrases of the answers) holds.
        """
        return Target(
            name=self.name, kind=self.kind, aliases=self.of("aliases"), examples=self.of("examples"),
            answers=self.of("answers"), forbid=self.of("forbid") or None, neighbours=self.of("neighbours"),
            verbatim=self.of("verbatim"), verbatim_words=self.verbatim_words,
        )


def sorted_rows(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows by field, each text of a field once: the first that comes."""
    first: dict[tuple[Field, str], Row] = {}
    for row in rows:
        # protected texts are compared as they are: their normal form would take long
        first.setdefault((row.field, row.text if row.field == "verbatim" else mask_form(row.text)), row)
    return tuple(sorted(first.values(), key=lambda row: FIELDS.index(row.field)))
