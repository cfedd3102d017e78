"""Fit recipes: what decides a fit (method, data, settings, seed) under a name that policies can say.

A recipe file (version 1) lists recipes; `settings` are the fields of the method's own configuration, except the seed,
which is the recipe's, plus `sites` or `site` where the method takes them beside its configuration.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from guard.errors import ConfigurationError
from guard.fit.autoencoder import TrainingConfig
from guard.fit.cast import CastConfig, run_fit_cast
from guard.fit.checkpoint import fit_identity
from guard.fit.linear_act import LinearActConfig, run_fit_linear_act
from guard.fit.lineas import LineasConfig, run_fit_lineas
from guard.fit.loaded_model import ModelDtype
from guard.fit.sae import ClampConfig, run_fit_sae
from guard.fit.steer import SteerConfig, run_fit_steer
from guard.fit.subspace import SubspaceConfig, run_fit_subspace
from guard.policy import Identifier

# raise it when the same recipe gives another pack
RECIPE_VERSION = 1
Config = TypeVar("Config", bound=BaseModel)


class SubspaceSettings(SubspaceConfig):
    """The method's configuration, and its sites as in `guard.site.parse_sites`."""

    sites: str = "auto"


class SaeSettings(TrainingConfig, ClampConfig):
    """Training of the autoencoder, choice of its features, and the one site where it reads."""

    site: str


class CastSettings(CastConfig):
    """The method's configuration, and its sites as in `guard.site.parse_sites`."""

    sites: str = "auto"


class RecipeBase(BaseModel):
    """What all recipes have. `data`: JSON Lines as the method reads them, relative to the recipe file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Identifier
    data: Path
    licence: str = "unknown"
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    dtype: ModelDtype = "float32"

    @field_validator("settings", check_fields=False)
    @classmethod
    def _one_seed(cls, settings: BaseModel) -> BaseModel:
        if "seed" in settings.model_fields_set:
            raise ValueError("`seed` is a key of the recipe, not of its settings")
        return settings


class SteerRecipe(RecipeBase):
    """`guard.fit.steer`."""

    method: Literal["steer"]
    settings: SteerConfig = SteerConfig()


class LinearActRecipe(RecipeBase):
    """`guard.fit.linear_act`."""

    method: Literal["linear-act"]
    settings: LinearActConfig = LinearActConfig()


class LineasRecipe(RecipeBase):
    """`guard.fit.lineas`."""

    method: Literal["lineas"]
    settings: LineasConfig = LineasConfig()


class SubspaceRecipe(RecipeBase):
    """`guard.fit.subspace`."""

    method: Literal["subspace"]
    settings: SubspaceSettings = SubspaceSettings()


class SaeRecipe(RecipeBase):
    """`guard.fit.sae`; the autoencoder is trained by the recipe."""

    method: Literal["sae"]
    settings: SaeSettings


class CastRecipe(RecipeBase):
    """`guard.fit.cast`."""

    method: Literal["cast"]
    settings: CastSettings = CastSettings()


Recipe = SteerRecipe | LinearActRecipe | LineasRecipe | SubspaceRecipe | SaeRecipe | CastRecipe
SETTINGS: dict[str, type[BaseModel]] = {
    "steer": SteerConfig, "linear-act": LinearActConfig, "lineas": LineasConfig, "subspace": SubspaceSettings,
    "sae": SaeSettings, "cast": CastSettings,
}


class RecipeFile(BaseModel):
    """A recipe file, version 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    recipes: Annotated[tuple[Annotated[Recipe, Field(discriminator="method")], ...], Field(min_length=1)]


def recipe_digest(recipe: Recipe, data_digest: str, fingerprint: str) -> str:
    """Hex SHA-256 of everything that decides the pack: the recipe without its name and the path of its data, the
    digest of the data's bytes, and the fingerprint of the model."""
    decisive = recipe.model_dump(mode="json", exclude={"name", "data"})
    return fit_identity("recipe", RECIPE_VERSION, decisive, data_digest, fingerprint)


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file's bytes. Raises ConfigurationError when it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def fit_recipe(
    recipe: Recipe, model: Path, data: Path, work: Path, *, device: str = "cpu", show_progress: bool = True
) -> Path:
    """Fit `recipe` to the model folder with the data at `data`; report, picture and state go into the folder `work`.

    Returns the pack's path. Raises GuardError.
    """
    shared: dict[str, Any] = {
        "device": device, "dtype": recipe.dtype, "licence": recipe.licence, "show_progress": show_progress
    }
    match recipe:
        case SteerRecipe():
            run_fit_steer(model, data, work, _config(SteerConfig, recipe), **shared)
        case LinearActRecipe():
            run_fit_linear_act(model, data, work, _config(LinearActConfig, recipe), **shared)
        case LineasRecipe():
            run_fit_lineas(model, data, work, _config(LineasConfig, recipe), **shared)
        case SubspaceRecipe():
            config = _config(SubspaceConfig, recipe)
            run_fit_subspace(model, data, work, sites=recipe.settings.sites, config=config, **shared)
        case SaeRecipe():
            run_fit_sae(
                model, data, work, site=recipe.settings.site, training=_config(TrainingConfig, recipe),
                config=_config(ClampConfig, recipe), **shared,
            )
        case CastRecipe():
            run_fit_cast(
                model, data, work, sites=recipe.settings.sites, config=_config(CastConfig, recipe), **shared
            )
    # every method writes its pack beside its report, under its own name
    return work / recipe.method


def _config(kind: type[Config], recipe: Recipe) -> Config:
    """The part of a recipe's settings that `kind` holds, with the recipe's seed."""
    values = {name: getattr(recipe.settings, name) for name in kind.model_fields if name != "seed"}
    return kind(**values, seed=recipe.seed)
