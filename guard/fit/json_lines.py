"""Reads the data of a fit: JSON Lines, one pydantic model for each line."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from guard.errors import ConfigurationError

Row = TypeVar("Row", bound=BaseModel)


def read_json_lines(path: Path, model: type[Row], needs: str) -> list[Row]:
    """Read one `model` per line, blank lines left out; `needs` says what a line must hold.

    Raises ConfigurationError that names the line; never shows its text.
    """
    try:
        # not splitlines: JSON allows U+2028 and its like inside a string
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{path.name}: cannot be read as UTF-8 text") from exc
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(model.model_validate_json(line))
        except ValidationError as exc:
            raise ConfigurationError(f"{path.name}:{number}: needs {needs}") from exc
    return rows
