"""`guard pack` on the command line: import, show and verify, with one line and an exit code for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.service.cli.command_line import run

WIDTH, FEATURES = 8, 12


def write_model(folder: Path, layers: int = 4) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": WIDTH, "num_hidden_layers": layers}))
    save_file({"model.norm.weight": torch.ones(WIDTH)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A Gemma Scope file."""
    path = tmp_path / "params.npz"
    ones = np.ones
    np.savez(path, W_enc=ones((WIDTH, FEATURES)), W_dec=ones((FEATURES, WIDTH)), b_enc=ones(FEATURES),
             b_dec=ones(WIDTH), threshold=ones(FEATURES))
    return path


def test_features_are_imported_shown_and_verified(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    options = ("--model", model, "--site", "2.resid_post", "--features", "3, 11", "--value", "-20", "--gate", "any")
    result = run("pack", "import", "gemma-scope", source, out, *options, "--licence", "CC-BY-4.0")
    assert (result.exit_code, result.stderr) == (0, "")
    shown = json.loads(run("pack", "show", out).stdout)
    assert shown["content_hash"] in result.stdout
    assert (shown["sites"], shown["licence"]) == (["2.resid_post"], "CC-BY-4.0")
    assert shown["parameters"] == {"value": -20.0, "gate": "any"}
    assert shown["fit_report"]["features"] == [3, 11]
    assert shown["shapes"]["2.resid_post/encoder"] == f"float32 [2, {WIDTH}]"
    verified = run("pack", "verify", out, "--model", model)
    assert verified.exit_code == 0 and "made for this model: edit" in verified.stdout


def test_a_pack_of_another_model_does_not_verify(model: Path, tmp_path: Path) -> None:
    save_file({"layer_3": torch.ones(WIDTH)}, tmp_path / "v.safetensors")
    assert run("pack", "import", "steer", tmp_path / "v.safetensors", tmp_path / "p", "--model", model).exit_code == 0
    result = run("pack", "verify", tmp_path / "p", "--model", write_model(tmp_path / "other", layers=2))
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (("--features", "1;2", "--value", "0"), 2, "not a list of indices"),
        (("--features", "-1", "--value", "0"), 2, "not a list of indices"),
        (("--features", "1"), 2, "need the value"),
        (("--features", "1", "--gate", "any"), 2, "--gate needs --value"),
        (("--features", "1", "--value", "nan"), 2, "must lie within"),
        (("--features", "1", "--value", "1e9"), 2, "must lie within"),
        (("--features", "12", "--value", "0"), 2, "features 0..11"),
        (("--features", "1", "--value", "0", "--site", "9.resid_post"), 2, "outside 0..3"),
        (("--features", "1", "--value", "0", "--site", "middle"), 2, "is not `LAYER.PLACE`"),
    ],
)
def test_wrong_choices_are_one_line_and_write_nothing(
    options: tuple[str, ...], code: int, reason: str, model: Path, source: Path, tmp_path: Path
) -> None:
    given = options if "--site" in options else (*options, "--site", "2.resid_post")
    result = run("pack", "import", "gemma-scope", source, tmp_path / "p", "--model", model, *given)
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
    assert reason in result.stderr
    assert not (tmp_path / "p").exists()


def test_a_pickle_is_refused_with_what_to_do(model: Path, tmp_path: Path) -> None:
    torch.save({"layer_1": torch.ones(WIDTH)}, tmp_path / "v.pt")
    result = run("pack", "import", "steer", tmp_path / "v.pt", tmp_path / "p", "--model", model)
    assert result.exit_code == 1
    assert "convert the tensors to .safetensors" in result.stderr


def test_an_edit_pack_whose_tensors_do_not_fit_its_method_does_not_verify(model: Path, tmp_path: Path) -> None:
    from guard.packs.format import PackHeader, save_pack

    header = PackHeader(kind="edit", method="subspace", model_fingerprint="fp1:" + "a" * 64, sites=("1.resid_post",),
                        parameters={}, fit_data_digest="c" * 64, licence="MIT")
    save_pack(tmp_path / "p", header, {"1.resid_post/basis": torch.ones(2, WIDTH)})
    result = run("pack", "verify", tmp_path / "p")
    assert result.exit_code == 1
    assert "orthonormal" in result.stderr
