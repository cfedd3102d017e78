"""The data of a concept fit: texts that are to be forgotten, texts that are to stay, and how they are split."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from guard.errors import ConfigurationError
from guard.fit.json_lines import read_json_lines

Label = Literal["forget", "retain", "behaviour"]


class ConceptRow(BaseModel):
    """One line of the data (JSON Lines): a text as the model sees it. `behaviour` marks texts that show what the model
    should do instead; only conditional steering reads them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    text: str
    label: Label


@dataclass(frozen=True, slots=True)
class ConceptTexts:
    """Texts by label, in a seeded order; the held-out ones are for the report only."""

    forget: tuple[str, ...]
    retain: tuple[str, ...]
    behaviour: tuple[str, ...]
    held_out_forget: tuple[str, ...]
    held_out_retain: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many texts there are in each part, for a report."""
        return {
            "forget": len(self.forget), "retain": len(self.retain), "behaviour": len(self.behaviour),
            "held_out_forget": len(self.held_out_forget), "held_out_retain": len(self.held_out_retain),
        }


def read_concept_rows(path: Path) -> list[ConceptRow]:
    """Read the data. Raises ConfigurationError that names the line; never shows its text."""
    return read_json_lines(path, ConceptRow, "`text` (string) and `label` (forget, retain or behaviour)")


def split_texts(rows: Sequence[ConceptRow], held_out_share: float, seed: int) -> ConceptTexts:
    """Shuffle each label and hold `held_out_share` of forget and retain out. Raises ConfigurationError when one of the
    two has fewer than 2 texts."""
    parts: dict[Label, list[str]] = {"forget": [], "retain": [], "behaviour": []}
    for row in rows:
        parts[row.label].append(row.text)
    for label in ("forget", "retain"):
        if len(parts[label]) < 2:
            raise ConfigurationError(f"a concept fit needs at least 2 texts with the label {label}")
        random.Random(seed).shuffle(parts[label])  # noqa: S311 - a reproducible split, not a secret
    held = {label: _held(len(parts[label]), held_out_share) for label in ("forget", "retain")}
    return ConceptTexts(
        forget=tuple(parts["forget"][held["forget"] :]), retain=tuple(parts["retain"][held["retain"] :]),
        behaviour=tuple(parts["behaviour"]), held_out_forget=tuple(parts["forget"][: held["forget"]]),
        held_out_retain=tuple(parts["retain"][: held["retain"]]),
    )


def rows_digest(rows: Sequence[ConceptRow]) -> str:
    """Hex SHA-256 of the data, for the pack's header."""
    return hashlib.sha256(json.dumps([[row.label, row.text] for row in rows]).encode()).hexdigest()


def _held(count: int, share: float) -> int:
    return 0 if share == 0.0 else min(count - 1, max(1, round(count * share)))
