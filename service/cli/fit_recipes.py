"""`guard fit recipes`: fit what a recipe file describes, so that policies can name the recipes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.errors import ConfigurationError, PackError
from guard.service.cli.options import DEFAULT_HOME, INVALID, DatabaseUrl, Home, fail, open_store
from guard.service.cli.stored_packs import add_pack

if TYPE_CHECKING:
    from guard.fit.recipes import Recipe, RecipeFile


def fit_recipes(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Recipe file (YAML).")],
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "",
) -> None:
    """Fit the recipes of FILE to MODEL and give each pack its recipe's name in the store, for policies to name.

    A recipe whose pack is there already, from the same settings, data and model, is not fitted again. Stored policies
    keep the pack that they were applied with: apply them again after a recipe has been fitted anew.
    """
    from guard.fit.recipes import recipe_digest
    from guard.packs.file_digest import file_digest
    from guard.packs.fingerprint import model_fingerprint

    recipes = _examined(file).recipes
    fingerprint = model_fingerprint(model)
    digests = [recipe_digest(recipe, file_digest(file.parent / recipe.data), fingerprint) for recipe in recipes]
    stored = {known.name: known.content_hash for known in open_store(home, database_url, create=True).packs()}
    fitted = 0
    for recipe, digest in zip(recipes, digests, strict=True):
        if _stands(home, recipe.name, digest, stored.get(recipe.name)):
            typer.echo(f"{recipe.name}: unchanged, not fitted again")
            continue
        _fit(recipe, digest, file, model, device, home, database_url)
        fitted += 1
    typer.echo(f"{fitted} of {len(recipes)} recipes fitted" if fitted else "nothing to do: every pack is in the store")


def _examined(file: Path) -> RecipeFile:
    """The recipe file; prints its problems and leaves when there are any."""
    from guard.service.files.recipe_file import examine_recipes
    from guard.service.files.tenant_file import read_text

    parsed, problems = examine_recipes(read_text(file), file.parent)
    for problem in problems:
        fail(str(problem))
    if parsed is None:
        fail(f"{file.name} was not used; nothing was fitted")
        raise typer.Exit(INVALID)
    return parsed


def _stands(home: Path, name: str, digest: str, stored: str | None) -> bool:
    """Whether the store's pack of this name came from this recipe, and its file is whole."""
    from guard.packs.format import load_pack
    from guard.service.cli.fitted_recipes import read_fitted
    from guard.service.store.pack_files import pack_path

    before = read_fitted(home, name)
    if before is None or before.digest != digest or before.content_hash != stored:
        return False
    with contextlib.suppress(PackError):
        return load_pack(pack_path(home, before.content_hash)).content_hash == stored
    return False


def _fit(
    recipe: Recipe, digest: str, file: Path, model: Path, device: str, home: Path, database_url: str
) -> None:
    from guard.fit.recipes import fit_recipe
    from guard.packs.format import load_pack
    from guard.service.cli.fitted_recipes import FittedRecipe, work_folder, write_fitted

    try:
        path = fit_recipe(recipe, model, file.parent / recipe.data, work_folder(home, recipe.name), device=device)
    except ConfigurationError as error:
        raise ConfigurationError(f"recipe {recipe.name}: {error}") from error
    content_hash = load_pack(path).content_hash
    add_pack(path, recipe.name, replace=True, home=home, database_url=database_url)
    # last, so that a run that is stopped before fits again
    write_fitted(home, FittedRecipe(name=recipe.name, digest=digest, content_hash=content_hash))
