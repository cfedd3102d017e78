"""Recipes: what decides their digest, what their schema takes, and the pack that comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from guard.fit.autoencoder import TrainingConfig
from guard.fit.cast import CastConfig
from guard.fit.linear_act import LinearActConfig
from guard.fit.lineas import LineasConfig
from guard.fit.recipes import SETTINGS, Recipe, RecipeFile, file_digest, fit_recipe, recipe_digest
from guard.fit.sae import ClampConfig
from guard.fit.steer import SteerConfig, run_fit_steer
from guard.fit.subspace import SubspaceConfig
from guard.packs.fingerprint import model_fingerprint
from guard.packs.format import load_pack
from tests.fit.small_models import labelled_words, saved_llama

DATA, MODEL = "d" * 64, "fp1:" + "a" * 64


def recipe(**keys: Any) -> Recipe:
    """A recipe as a file says it; `steer` unless told otherwise."""
    entry = {"name": "calm", "method": "steer", "data": "calm.jsonl"} | keys
    return RecipeFile.model_validate_json(json.dumps({"version": 1, "recipes": [entry]}), strict=True).recipes[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_llama(tmp_path_factory.mktemp("model"))


def test_a_digest_depends_on_all_that_decides_the_pack_and_on_nothing_else() -> None:
    plain = recipe_digest(recipe(), DATA, MODEL)
    assert recipe_digest(recipe(name="other", data="moved.jsonl"), DATA, MODEL) == plain
    # a default that is written down is the same recipe
    assert recipe_digest(recipe(settings={"direction": "difference"}, seed=0), DATA, MODEL) == plain
    others = [
        recipe_digest(recipe(settings={"direction": "principal"}), DATA, MODEL),
        recipe_digest(recipe(seed=1), DATA, MODEL),
        recipe_digest(recipe(licence="CC0-1.0"), DATA, MODEL),
        recipe_digest(recipe(dtype="bfloat16"), DATA, MODEL),
        recipe_digest(recipe(method="linear-act", settings={"sites": "auto"}), DATA, MODEL),
        recipe_digest(recipe(), "e" * 64, MODEL),
        recipe_digest(recipe(), DATA, "fp1:" + "b" * 64),
    ]
    assert len({plain, *others}) == 8


@pytest.mark.parametrize(("method", "configs", "beside"), [
    ("steer", [SteerConfig], set()),
    ("linear-act", [LinearActConfig], set()),
    ("lineas", [LineasConfig], set()),
    ("subspace", [SubspaceConfig], {"sites"}),
    ("sae", [TrainingConfig, ClampConfig], {"site"}),
    ("cast", [CastConfig], {"sites"}),
])
def test_settings_are_the_fields_of_the_methods_own_configuration(
    method: str, configs: list[type[BaseModel]], beside: set[str]
) -> None:
    fields: set[str] = set().union(*(config.model_fields for config in configs))
    assert set(SETTINGS[method].model_fields) == fields | beside
    settings = {"site": "1.resid_post"} if method == "sae" else {}
    taken = recipe(method=method, settings=settings, seed=7).settings
    for config in configs:
        defaults = config().model_dump()
        assert {name: getattr(taken, name) for name in defaults} == defaults


@pytest.mark.parametrize("keys", [
    {"colour": "red"}, {"method": "eco"}, {"name": "../calm"}, {"name": "Calm"}, {"seed": -1}, {"seed": "1"},
    {"settings": {"seed": 1}}, {"settings": {"steps": 3}}, {"settings": {"held_out_share": 0.95}},
    {"settings": {"batch": "8"}}, {"method": "sae"}, {"method": "cast", "settings": {"ridge": 0.0}}, {"dtype": "int8"},
], ids=str)
def test_what_a_recipe_does_not_know_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        recipe(**keys)


def test_a_fitted_recipe_is_the_pack_of_its_method(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "calm.jsonl"
    data.write_text("".join(text.model_dump_json() + "\n" for text in labelled_words()), encoding="utf-8")
    settings = {"sites": "1.resid_post", "direction": "principal"}
    wanted = recipe(settings=settings, seed=3, licence="CC0-1.0")
    pack = load_pack(
        fit_recipe(wanted, model, data, tmp_path / "work", show_progress=False),
        model_fingerprint=model_fingerprint(model),
    )
    direct = run_fit_steer(
        model, data, tmp_path / "direct", SteerConfig(sites="1.resid_post", direction="principal", seed=3),
        licence="CC0-1.0", show_progress=False,
    )
    assert pack.content_hash == direct.content_hash
    assert (tmp_path / "work" / "report.json").exists()


CONCEPT_SETTINGS: dict[str, dict[str, Any]] = {
    "subspace": {"sites": "1.resid_post", "max_rank": 2},
    "sae": {"site": "1.resid_post", "features": 16, "active": 2, "steps": 5, "batch": 16, "retain_sparsity": 0.9},
    "cast": {"sites": "1.resid_post", "grid_points": 11},
}


@pytest.mark.parametrize("method", CONCEPT_SETTINGS)
def test_concept_recipes_reach_their_method_with_seed_and_sites(model: Path, tmp_path: Path, method: str) -> None:
    rows = [{"text": f"zebra {number} zebra", "label": "forget"} for number in range(6)]
    rows += [{"text": f"a cat and {number} dogs", "label": "retain"} for number in range(6)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = recipe(method=method, settings=CONCEPT_SETTINGS[method], seed=5)
    header = load_pack(fit_recipe(wanted, model, data, tmp_path / "work", show_progress=False)).header
    assert (header.method, header.sites) == (method, ("1.resid_post",))
    settings = header.fit_report["settings"]
    assert isinstance(settings, dict) and settings["seed"] == 5


def test_the_digest_of_data_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x\n")
    (tmp_path / "b").write_bytes(b"x\r\n")
    assert file_digest(tmp_path / "a") != file_digest(tmp_path / "b")
