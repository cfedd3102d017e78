"""Fit recipes: what decides a fit (method, data, settings, seed) under a name that policies can say.

A recipe file (version 1) lists recipes of the methods whose packs are edits; `settings` are the fields of the method's
own configuration, except the seed, which is the recipe's, and what only the command has. Schemas are made from the
registry of methods.
"""

from __future__ import annotations

import functools
import operator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from guard.fit.checkpoint import fit_identity
from guard.interventions.fit_config import MAX_SEED, FitConfig, ModelDtype
from guard.interventions.method import Method
from guard.interventions.registry import edit_methods
from guard.policy import Identifier

# raise it when the same recipe gives another pack
RECIPE_VERSION = 1


class Recipe(BaseModel):
    """What all recipes have. `data`: JSON Lines as the method reads them, relative to the recipe file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Identifier
    method: str
    data: Path
    licence: str = "unknown"
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    dtype: ModelDtype = "float32"
    settings: FitConfig

    @field_validator("settings")
    @classmethod
    def _settings_of_a_recipe(cls, settings: FitConfig) -> FitConfig:
        if "seed" in settings.model_fields_set:
            raise ValueError("`seed` is a key of the recipe, not of its settings")
        for name in sorted(settings.model_fields_set & settings.command_only()):
            raise ValueError(f"`{name}` is an option of `guard fit {cls.__name__}`, not a setting of recipes")
        return settings


class RecipeFile(BaseModel):
    """A recipe file, version 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    recipes: Annotated[tuple[Recipe, ...], Field(min_length=1)]


def recipe_file() -> type[RecipeFile]:
    """The schema of recipe files: each recipe is checked against the settings of its method."""
    return _recipe_file(tuple(edit_methods().values()))


@functools.lru_cache(maxsize=8)
def _recipe_file(methods: tuple[Method, ...]) -> type[RecipeFile]:
    recipe = functools.reduce(operator.or_, map(_recipe_of, methods))
    recipes = tuple[Annotated[recipe, Field(discriminator="method")], ...]  # type: ignore[valid-type]
    return create_model("RecipeFile", __base__=RecipeFile, recipes=(Annotated[recipes, Field(min_length=1)], ...))


def _recipe_of(method: Method) -> Any:
    """The schema of one method's recipes; settings may be left out where all of them have a default."""
    literal: Any = Literal
    needed = any(field.is_required() for field in method.config.model_fields.values())
    return create_model(
        method.name, __base__=Recipe, __doc__=method.command, method=(literal[method.name], ...),
        settings=(method.config, ... if needed else method.config()),
    )


def recipe_digest(recipe: Recipe, data_digest: str, fingerprint: str) -> str:
    """Hex SHA-256 of everything that decides the pack: the recipe without its name and the path of its data, the
    digest of the data's bytes, and the fingerprint of the model."""
    decisive = recipe.model_dump(mode="json", exclude={"name", "data"})
    return fit_identity("recipe", RECIPE_VERSION, decisive, data_digest, fingerprint)


def fit_recipe(
    recipe: Recipe, model: Path, data: Path, work: Path, *, device: str = "cpu", show_progress: bool = True
) -> Path:
    """Fit `recipe` to the model folder with the data at `data`; report, picture and state go into the folder `work`.

    Returns the pack's path. Raises GuardError.
    """
    method = edit_methods()[recipe.method]
    config = recipe.settings.model_copy(update={"seed": recipe.seed})
    method.load_fit()(
        model, data, work, config, device=device, dtype=recipe.dtype, licence=recipe.licence,
        show_progress=show_progress,
    )
    # every method writes its pack beside its report, under its own name
    return work / method.name
