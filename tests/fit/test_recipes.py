"""Recipes: what decides their digest, what their schema takes, and the pack that comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from guard.fit.recipes import Recipe, fit_recipe, recipe_digest, recipe_file
from guard.fit.steer import run_fit_steer
from guard.interventions.registry import edit_methods
from guard.interventions.steer import SteerConfig
from guard.packs.fingerprint import model_fingerprint
from guard.packs.format import load_pack
from tests.fit.small_models import labelled_words, saved_llama

DATA, MODEL = "d" * 64, "fp1:" + "a" * 64


def recipe(**keys: Any) -> Recipe:
    """A recipe as a file says it; `steer` unless told otherwise."""
    entry = {"name": "calm", "method": "steer", "data": "calm.jsonl"} | keys
    return recipe_file().model_validate_json(json.dumps({"version": 1, "recipes": [entry]}), strict=True).recipes[0]


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


@pytest.mark.parametrize(("method", "settings", "digest"), [
    ("steer", {},
     "0b69e670351e86012642a288957492425d04d096ede63f3edd40ea43cfc8e5a4"),
    ("linear-act", {},
     "bf97a30451e4dea5cde91c2515cd523429a7261f7833cf4432c472e55c700ad9"),
    ("lineas", {},
     "f31998139c5b083a07ac9058c290b31445d939db112dddfa1fd7119d29c4b75a"),
    ("subspace", {},
     "bfe715ba79aeaa258175b84834e58bee5e1cd7802a01e27c9b37f9dbe4730360"),
    ("sae", {"site": "1.resid_post"},
     "18021fd926533a64d9a42a1adf4c6375eaf2ea2b067eee62c014924ed34d0d01"),
    ("cast", {},
     "025dc61ba7a44554c438ae9ce14582a46d9c74258b0f1e1057a53e3716850e80"),
    ("steer", {"sites": "1.resid_post", "direction": "principal", "batch": 8},
     "d874224bbb71ab3b457bae86c3a5912e79009bcd9165840157e9a4b20a501031"),
    ("lineas", {"steps": 3, "learning_rate": 1.0, "standardise": True},
     "aea9904c98b57532b1536f51d80d7cd4be861b91fc25820f7ffa9489627bee9f"),
    ("sae", {"site": "2.resid_post", "features": 32, "clamp": 0.5, "batch": 64},
     "cb27bc8f97d1c4c917ef03046a6167bf3f369da0bb75be0b10d7abd52a53ebd9"),
    ("cast", {"sites": "0-1.resid_post", "ridge": 1.0},
     "33036ecb7a3cafab9c6f5ef6e0e7782047c153cff4349246f7eaffdd49968a30"),
    ("subspace", {"sites": "auto", "kind": "energy", "affine": False},
     "e10519d8588a6f5e45e1e61c201e77dd88c4146438e2a9712360805d0af6eb09"),
])
def test_the_digest_of_a_recipe_stays_what_it_was_so_that_its_pack_stands(
    method: str, settings: dict[str, Any], digest: str
) -> None:
    given = {"settings": settings} if settings else {}
    assert recipe_digest(recipe(method=method, seed=7, licence="MIT", **given), DATA, MODEL) == digest


def test_settings_are_the_fields_of_the_methods_own_configuration() -> None:
    for name, method in edit_methods().items():
        settings: dict[str, Any] = {"site": "1.resid_post"} if "site" in method.config.model_fields else {}
        taken = recipe(method=name, settings=settings, seed=7).settings
        assert taken == method.config(**settings)


@pytest.mark.parametrize("keys", [
    {"colour": "red"}, {"method": "eco"}, {"name": "../calm"}, {"name": "Calm"}, {"seed": -1}, {"seed": "1"},
    {"settings": {"seed": 1}}, {"settings": {"steps": 3}}, {"settings": {"held_out_share": 0.95}},
    {"settings": {"batch": "8"}}, {"method": "sae"}, {"method": "cast", "settings": {"ridge": 0.0}}, {"dtype": "int8"},
    {"method": "sae", "settings": {"site": "1.resid_post", "autoencoder": "a.safetensors"}},
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
