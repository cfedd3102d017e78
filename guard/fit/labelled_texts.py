"""The data of a steering fit: texts to move away from (source) and texts to move towards (target)."""

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

Label = Literal["source", "target"]


class LabelledText(BaseModel):
    """One line of the data (JSON Lines). `text` is what the model sees, chat turns rendered; `prompt` stands before it
    and its activations do not count."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    text: str
    label: Label
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class SplitTexts:
    """Texts in a seeded order; the held-out ones are for the report only."""

    source: tuple[LabelledText, ...]
    target: tuple[LabelledText, ...]
    held_out_source: tuple[LabelledText, ...]
    held_out_target: tuple[LabelledText, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many texts there are in each part, for a report."""
        return {
            "source": len(self.source), "target": len(self.target), "held_out_source": len(self.held_out_source),
            "held_out_target": len(self.held_out_target),
        }


def read_labelled_texts(path: Path) -> list[LabelledText]:
    """Read the data. Raises ConfigurationError that names the line; never shows its text."""
    return read_json_lines(path, LabelledText, "`text` (string) and `label` (source or target)")


def split_labelled(texts: Sequence[LabelledText], held_out_share: float, seed: int) -> SplitTexts:
    """Shuffle each label and hold out `held_out_share` of it, 2 texts at least unless the share is 0.

    Raises ConfigurationError when a label has fewer than 2 texts left for the fit.
    """
    parts: dict[Label, tuple[LabelledText, ...]] = {}
    held: dict[Label, tuple[LabelledText, ...]] = {}
    for label in ("source", "target"):
        rows = [text for text in texts if text.label == label]
        random.Random(seed).shuffle(rows)  # noqa: S311 - a reproducible split, not a secret
        count = max(2, round(len(rows) * held_out_share)) if held_out_share > 0.0 else 0
        if len(rows) - count < 2:
            raise ConfigurationError(
                f"a fit that holds {count} texts out needs {2 + count} with the label {label}, got {len(rows)}"
            )
        held[label], parts[label] = tuple(rows[:count]), tuple(rows[count:])
    return SplitTexts(parts["source"], parts["target"], held["source"], held["target"])


def texts_digest(texts: Sequence[LabelledText]) -> str:
    """Hex SHA-256 of the data, for the pack's header."""
    return hashlib.sha256(json.dumps([[row.label, row.prompt, row.text] for row in texts]).encode()).hexdigest()
