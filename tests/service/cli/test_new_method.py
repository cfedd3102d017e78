"""A method that is new: two files, and it is in the commands, in recipes and in the documentation."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from guard import fit, interventions
from guard.packs.format import load_pack
from guard.service.files.recipe_file import examine_recipes
from guard.service.store.keys import load_pepper
from guard.service.store.store import Store
from tests.fit.small_models import labelled_words, saved_llama
from tests.service.cli.command_line import run

MATHEMATICS = '''
from typing import Annotated, Literal
from pydantic import Field
import torch
from guard.interventions.fit_config import FitConfig, Sites
from guard.interventions.method import SOURCE_AND_TARGET, Method
from guard.kernels.edit_formula import EditRow
from guard.packs.edit_format import NoParameters, checked, save_edit, tensors_by_site


class NudgeConfig(FitConfig):
    sites: Sites = "auto"
    size: Annotated[float, Field(gt=0.0, le=8.0, description="How far every channel is nudged.")] = 0.5
    side: Annotated[Literal["up", "down"], Field(description="Which way.")] = "up"
    gently: Annotated[bool, Field(description="By a tenth.")] = False


def save_nudge(path, vectors, **origin):
    return save_edit(path, "nudge", {site: {"nudge": v} for site, v in vectors.items()}, NoParameters(), rows, **origin)


def rows(pack):
    return checked({site: EditRow(shift=t["nudge"]) for site, t in tensors_by_site(pack, {"nudge": 1}).items()})


METHOD = Method(
    name="nudge", config=NudgeConfig, fit="guard.fit.nudge:run_fit_nudge", rows=rows, paper=("1234.56789",),
    data=SOURCE_AND_TARGET, edit="adds a constant", command="Nudge MODEL.",
)
'''
FIT = '''
import torch
from guard.fit.loaded_model import load_model
from guard.interventions.nudge import save_nudge


def run_fit_nudge(
    model, data, out, config, *, device="cpu", dtype="float32", licence="unknown", show_progress=True
):
    loaded = load_model(model, device=device, dtype=dtype)
    size = config.size * (0.1 if config.gently else 1.0) * (1 if config.side == "up" else -1)
    vectors = {site: torch.full((16,), size) for site in loaded.sites(config.sites)}
    report = {"settings": config.model_dump(mode="json")}
    return save_nudge(
        out / "nudge", vectors, model_fingerprint=loaded.fingerprint, fit_data_digest="0" * 64, fit_report=report,
        licence=licence,
    )
'''
RECIPES = """\
version: 1
recipes:
  - name: nudged
    method: nudge
    data: data.jsonl
    seed: 3
    settings: {sites: 1.resid_post, size: 2.0, side: down}
"""


@pytest.fixture
def nudge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files of the method, in folders that both packages search as well."""
    for package, text in ((interventions, MATHEMATICS), (fit, FIT)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "nudge.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield
    for name in ("guard.interventions.nudge", "guard.fit.nudge"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = saved_llama(tmp_path_factory.mktemp("model"))
    lines = "".join(text.model_dump_json() + "\n" for text in labelled_words())
    (folder / "data.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def generator() -> ModuleType:
    path = Path(__file__).parents[3] / "docs" / "generate.py"
    specification = importlib.util.spec_from_file_location("docs_generate_for_a_new_method", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_without_its_files_there_is_no_such_method() -> None:
    assert "nudge" not in run("fit", "--help").output
    assert run("fit", "nudge").exit_code == 2


@pytest.mark.usefixtures("nudge")
def test_it_has_a_command_with_its_settings_as_options(model: Path, tmp_path: Path) -> None:
    listed = run("fit", "--help")
    assert listed.exit_code == 0 and "Nudge MODEL." in listed.output
    told = run("fit", "nudge", "--help").output
    assert all(option in told for option in ("--size", "--side", "up|down", "[default: 0.5]", "--gently", "--seed"))
    assert "--no-gently" not in told

    paths = (model, model / "data.jsonl", tmp_path / "out")
    done = run("fit", "nudge", *paths, "--sites", "0.mlp_norm", "--size", "4", "--gently", "--licence", "MIT")
    assert done.exit_code == 0, done.output
    pack = load_pack(tmp_path / "out" / "nudge")
    assert f"nudge {pack.content_hash}: 0.mlp_norm, written to" in done.output
    assert pack.header.licence == "MIT"
    assert pack.tensors["0.mlp_norm/nudge"].tolist() == pytest.approx([0.4] * 16)
    assert run("pack", "verify", tmp_path / "out" / "nudge", "--model", model).exit_code == 0


@pytest.mark.usefixtures("nudge")
@pytest.mark.parametrize(("option", "value"), [("--size", "0"), ("--size", "9"), ("--side", "left"), ("--seed", "-1")])
def test_a_setting_out_of_its_bounds_is_named(model: Path, tmp_path: Path, option: str, value: str) -> None:
    refused = run("fit", "nudge", model, model / "data.jsonl", tmp_path / "out", option, value)
    assert refused.exit_code == 2 and option in refused.output
    assert "Traceback" not in refused.output and not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nudge")
def test_a_recipe_that_names_it_is_checked_fitted_and_stored(home: Path, model: Path) -> None:
    file = model / "recipes.yaml"
    file.write_text(RECIPES.replace("side: down", "sides: down"), encoding="utf-8")
    refused = run("fit", "recipes", file, model)
    assert refused.exit_code == 1
    assert "line 7: recipes[0].settings.sides: unknown key; did you mean `side`?" in refused.stderr

    file.write_text(RECIPES, encoding="utf-8")
    done = run("fit", "recipes", file, model)
    assert done.exit_code == 0, done.output
    (stored,) = Store(home / "guard.db", load_pepper(home)).packs()
    assert stored.name == "nudged"
    header = load_pack(home / "recipes" / "nudged" / "nudge").header
    assert header.content_hash == stored.content_hash
    settings = header.fit_report["settings"]
    assert isinstance(settings, dict)
    assert (settings["seed"], settings["size"], settings["side"]) == (3, 2.0, "down")


def test_a_recipe_that_names_it_without_its_files_is_told_which_methods_there_are(model: Path) -> None:
    _, problems = examine_recipes(RECIPES, model)
    assert str(problems[0]).startswith("line 4: recipes[0].method: must be one of cast, linear-act, lineas")


@pytest.mark.usefixtures("nudge")
def test_the_documentation_lists_it(generator: ModuleType) -> None:
    row = "| `nudge` | source and target texts | adds a constant | `auto` | [1234.56789](https://arxiv.org/abs/1234.56789)"
    assert row in generator.methods_table()
    assert "### `guard fit nudge`\n\nNudge MODEL." in generator.cli_text()
    assert "- `--size`: How far every channel is nudged. Default: `0.5`." in generator.cli_text()
