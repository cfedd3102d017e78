"""`guard fit recipes`: from a recipe file to packs that policies name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import Result

from guard.service.files.recipe_file import examine_recipes
from guard.service.store.keys import load_pepper
from guard.service.store.pack_files import pack_path
from guard.service.store.store import Store
from tests.fit.small_models import labelled_words, saved_llama
from tests.service.cli.command_line import run

RECIPES = """\
version: 1
recipes:
  - name: calm
    method: steer
    data: data/calm.jsonl
    licence: CC0-1.0
    settings:
      sites: 1.resid_post
  - name: calm-late
    method: steer
    data: data/calm.jsonl
    seed: 4
    settings: {sites: 2.resid_post, direction: principal}
"""
TENANTS = """\
version: 1
tenants:
  - name: acme
    policy:
      edits: [{pack: calm, when: always}]
"""
WORDS = st.text(max_size=4) | st.sampled_from(["steer", "sae", "calm"])
SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | WORDS
KEYS = st.sampled_from(["name", "method", "data", "settings", "seed", "sites", "clamp", "steer", "x"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def home(home: Path, tmp_path: Path) -> Path:
    write_data(tmp_path)
    return home


def write_data(folder: Path, count: int = 12) -> None:
    (folder / "data").mkdir(exist_ok=True)
    lines = "".join(text.model_dump_json() + "\n" for text in labelled_words(count))
    (folder / "data" / "calm.jsonl").write_text(lines, encoding="utf-8")


def fitted(folder: Path, model: Path, text: str = RECIPES) -> Result:
    (folder / "recipes.yaml").write_text(text, encoding="utf-8")
    return run("fit", "recipes", folder / "recipes.yaml", model)


def stored(home: Path) -> dict[str, str]:
    return {pack.name: pack.content_hash for pack in Store(home / "guard.db", load_pepper(home)).packs()}


def test_recipes_are_fitted_once_and_again_when_something_changed(home: Path, tmp_path: Path, model: Path) -> None:
    first = fitted(tmp_path, model)
    assert first.exit_code == 0, first.output
    assert "2 of 2 recipes fitted" in first.stdout
    packs = stored(home)
    assert set(packs) == {"calm", "calm-late"}
    report = home / "recipes" / "calm" / "report.json"
    written_ns = report.stat().st_mtime_ns

    second = fitted(tmp_path, model)
    assert second.exit_code == 0
    assert second.stdout.splitlines() == [
        "calm: unchanged, not fitted again", "calm-late: unchanged, not fitted again",
        "nothing to do: every pack is in the store",
    ]
    assert (stored(home), report.stat().st_mtime_ns) == (packs, written_ns)

    third = fitted(tmp_path, model, RECIPES.replace("direction: principal", "direction: difference"))
    assert "calm: unchanged" in third.stdout and "1 of 2 recipes fitted" in third.stdout
    assert stored(home)["calm"] == packs["calm"] and stored(home)["calm-late"] != packs["calm-late"]

    write_data(tmp_path, 13)
    assert "2 of 2 recipes fitted" in fitted(tmp_path, model).stdout
    assert stored(home)["calm"] != packs["calm"]
    # nothing refers to the packs before, so their files are gone
    assert not pack_path(home, packs["calm"]).exists()


def test_a_policy_that_names_a_recipe_gets_the_content_hash(home: Path, tmp_path: Path, model: Path) -> None:
    assert fitted(tmp_path, model).exit_code == 0
    (tmp_path / "tenants.yaml").write_text(TENANTS, encoding="utf-8")
    applied = run("apply", tmp_path / "tenants.yaml")
    assert applied.exit_code == 0, applied.output
    (edit,) = Store(home / "guard.db", load_pepper(home)).snapshot().tenants["acme"].policy.edits
    assert edit.pack == stored(home)["calm"]
    assert pack_path(home, edit.pack).exists()


def test_a_pack_that_was_moved_or_damaged_is_fitted_again(home: Path, tmp_path: Path, model: Path) -> None:
    assert fitted(tmp_path, model).exit_code == 0
    packs = stored(home)
    assert run("pack", "add", pack_path(home, packs["calm-late"]), "--name", "calm", "--replace").exit_code == 0
    path = pack_path(home, packs["calm-late"])
    path.write_bytes(path.read_bytes()[:-4])
    assert "2 of 2 recipes fitted" in fitted(tmp_path, model).stdout
    assert stored(home) == packs
    (home / "recipes" / "calm.json").write_text("{", encoding="utf-8")
    assert "1 of 2 recipes fitted" in fitted(tmp_path, model).stdout
    assert json.loads((home / "recipes" / "calm.json").read_text())["content_hash"] == packs["calm"]


@pytest.mark.parametrize(("old", "new", "place", "reason"), [
    ("    licence:", "    license:", "line 6: recipes[0].license", "did you mean `licence`?"),
    ("direction: ", "direktion: ", "line 13: recipes[1].settings.direktion", "did you mean `direction`?"),
    ("principal", "sideways", "line 13: recipes[1].settings.direction", "'difference' or 'principal'"),
    ("method: steer", "method: stear", "line 4: recipes[0].method", "must be one of cast, linear-act, lineas, sae"),
    ("    method: steer\n", "", "line 3: recipes[0].method", "must be one of cast"),
    ("seed: 4", "seed: four", "line 12: recipes[1].seed", "valid integer"),
    ("{sites: 2", "{seed: 1, sites: 2", "line 13: recipes[1].settings", "key of the recipe"),
    ("name: calm-late", "name: calm", "line 9: recipes[1].name", "already at line 3"),
    ("name: calm-late", "name: Calm", "line 9: recipes[1].name", "lower-case letters"),
    ("data/calm.jsonl", "data/none.jsonl", "line 5: recipes[0].data", "there is no file data/none.jsonl"),
    ("version: 1", "version: 2", "line 1: version", "1"),
    ("recipes:\n", "recipes: []\nmore:\n", "line 2: recipes", "at least one item"),
    ("version: 1", "version: [", "line 3: version[0].recipes", "this is not YAML"),
    (RECIPES, "calm", "line 1", "a mapping"),
])
def test_a_problem_is_told_with_line_and_field(
    home: Path, tmp_path: Path, model: Path, old: str, new: str, place: str, reason: str
) -> None:
    result = fitted(tmp_path, model, RECIPES.replace(old, new, 1))
    assert result.exit_code == 1
    told = [line for line in result.stderr.splitlines() if line.startswith(f"guard: error: {place}")]
    assert told and reason in told[0], result.stderr
    assert "nothing was fitted" in result.stderr.splitlines()[-1]
    assert not home.exists()


def test_what_only_the_model_tells_names_the_recipe(home: Path, tmp_path: Path, model: Path) -> None:
    result = fitted(tmp_path, model, RECIPES.replace("2.resid_post", "7.resid_post"))
    assert result.exit_code == 2
    assert "recipe calm-late: " in result.stderr and "layers outside 0..2" in result.stderr
    # the recipe before is there, and the next run goes on after it
    assert set(stored(home)) == {"calm"}
    assert "1 of 2 recipes fitted" in fitted(tmp_path, model).stdout


@given(st.text() | st.builds(lambda value: json.dumps({"version": 1, "recipes": value}), VALUES))
def test_any_text_gives_recipes_or_problems_with_a_line(text: str) -> None:
    file, problems = examine_recipes(text, Path("/nonexistent"))
    # no data can be there, so nothing is valid
    assert file is None and problems
    assert all(problem.line >= 1 or "not YAML" in str(problem) for problem in problems)
