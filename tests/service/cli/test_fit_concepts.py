"""`guard fit subspace|sae|cast` from files to packs that `guard pack verify` accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guard.service.cli.main import app
from tests.fit.small_models import saved_llama, zebra_rows

OPTIONS: dict[str, list[str]] = {
    "subspace": ["--sites", "1.resid_post", "--max-rank", "3", "--no-affine"],
    "sae": [
        "--site", "1.resid_post", "--features", "32", "--active", "4", "--steps", "40", "--batch", "64",
        "--retain-sparsity", "0.3",
    ],
    "cast": ["--sites", "0-2.resid_post", "--scale", "2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    saved_llama(folder / "model")
    (folder / "data.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in zebra_rows(6)))
    return folder


@pytest.mark.parametrize("method", list(OPTIONS))
def test_a_fit_writes_a_pack_that_verifies(folder: Path, method: str) -> None:
    paths = [str(folder / "model"), str(folder / "data.jsonl"), str(folder / method)]
    result = CliRunner().invoke(app, ["fit", method, *paths, *OPTIONS[method], "--licence", "MIT"])
    assert result.exit_code == 0, result.output
    report = json.loads((folder / method / "report.json").read_text())
    assert report["method"] == method
    verified = CliRunner().invoke(
        app, ["pack", "verify", str(folder / method / method), "--model", str(folder / "model")]
    )
    assert verified.exit_code == 0, verified.output
    header = json.loads((folder / method / method / "pack.json").read_text())
    assert (header["kind"], header["method"], header["licence"]) == ("edit", method, "MIT")


def test_a_setting_out_of_range_is_named_in_one_line(folder: Path) -> None:
    paths = [str(folder / "model"), str(folder / "data.jsonl"), str(folder / "none")]
    result = CliRunner().invoke(app, ["fit", "sae", *paths, "--site", "1.resid_post", "--learning-rate", "7"])
    assert result.exit_code == 2
    assert "--learning-rate" in result.output
    result = CliRunner().invoke(app, ["fit", "cast", *paths, "--sites", "9.resid_post"])
    assert result.exit_code == 2
    assert "0..2" in result.output
    assert not (folder / "none").exists()
