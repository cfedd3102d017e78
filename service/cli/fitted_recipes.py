"""Which recipe each fitted pack came from: `GUARD_HOME/recipes/NAME.json`, beside the fit's own folder `NAME/`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from guard.errors import ConfigurationError

FOLDER = "recipes"


class FittedRecipe(BaseModel):
    """`digest`: of the recipe, see `guard.fit.recipes.recipe_digest`; `content_hash`: of the pack that came out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    digest: str
    content_hash: str


def work_folder(home: Path, name: str) -> Path:
    """Where report, picture, state and pack of a recipe's last fit lie, in a folder that only its owner can read.

    Raises ConfigurationError when that folder cannot be made.
    """
    folder = home / FOLDER / name
    _make_private(folder.parent)
    return folder


def read_fitted(home: Path, name: str) -> FittedRecipe | None:
    """What is remembered of a recipe; None when it was never fitted or the record is damaged, so that it is fitted."""
    try:
        return FittedRecipe.model_validate_json(_file(home, name).read_bytes())
    except (OSError, ValidationError):
        return None


def write_fitted(home: Path, fitted: FittedRecipe) -> None:
    """Remember a fit. Raises ConfigurationError when the folder cannot be written."""
    target = _file(home, fitted.name)
    partial = target.with_suffix(".partial")
    _make_private(target.parent)
    try:
        partial.write_text(fitted.model_dump_json(indent=1) + "\n", encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror}") from error


def _file(home: Path, name: str) -> Path:
    return home / FOLDER / f"{name}.json"


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be made: {error.strerror}") from error
