"""`guard fit` for source and target texts, and for questions, from files to packs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guard.packs.fingerprint import model_fingerprint
from guard.packs.format import load_pack
from guard.service.cli.main import app
from tests.fit.small_models import labelled_words, saved_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    file.write_text("".join(text.model_dump_json() + "\n" for text in labelled_words()), encoding="utf-8")
    return file


@pytest.mark.parametrize(("method", "options", "sites"), [
    ("steer", ["--sites", "1.resid_post", "--direction", "principal"], ("1.resid_post",)),
    ("linear-act", ["--sites", "*.mlp_norm", "--order", "at_once"], ("0.mlp_norm", "1.mlp_norm", "2.mlp_norm")),
    ("lineas", ["--sites", "0.attn_norm", "--steps", "3", "--optimizer", "adam"], ("0.attn_norm",)),
])
def test_a_fit_writes_a_pack_for_the_model(
    model: Path, data: Path, tmp_path: Path, method: str, options: list[str], sites: tuple[str, ...]
) -> None:
    result = CliRunner().invoke(
        app, ["fit", method, str(model), str(data), str(tmp_path), "--licence", "CC0-1.0", *options]
    )
    assert result.exit_code == 0, result.output
    pack = load_pack(tmp_path / method, model_fingerprint=model_fingerprint(model))
    assert (pack.header.method, pack.header.sites, pack.header.licence) == (method, sites, "CC0-1.0")
    assert pack.content_hash in result.output
    assert json.loads((tmp_path / "report.json").read_text())["method"] == method


def test_a_strength_is_fitted_to_a_target_or_to_the_records_of_another_model(model: Path, tmp_path: Path) -> None:
    data, records = tmp_path / "data.jsonl", tmp_path / "records.jsonl"
    questions = ({"question": f"Who is {number}?", "answer": f"It is {number}."} for number in range(4))
    data.write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
    records.write_text('{"nll": 6.0}\n', encoding="utf-8")
    options = ["--grid-points", "2", "--refine-steps", "1", "--noise-seeds", "1", "--seed", "1"]
    hashes = []
    for name, source in (("target", "-6"), ("retain-records", str(records))):
        arguments = ["fit", "eco", str(model), str(data), str(tmp_path / name), f"--{name}", source, *options]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        pack = load_pack(tmp_path / name / "eco", model_fingerprint=model_fingerprint(model))
        assert f"eco {pack.content_hash}: rho {pack.header.parameters['rho']:g}, written to" in result.output
        hashes.append(pack.content_hash)
    assert hashes[0] == hashes[1]
    refused = CliRunner().invoke(app, ["fit", "eco", str(model), str(data), str(tmp_path / "none")])
    assert refused.exit_code == 2 and "give either a target value or the records" in refused.output


def test_a_site_that_the_model_lacks_ends_with_one_line(model: Path, data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fit", "steer", str(model), str(data), str(tmp_path), "--sites", "7.resid_post"])
    assert result.exit_code == 2
    assert "layers outside 0..2" in result.output and "Traceback" not in result.output


def test_data_without_a_label_ends_with_one_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n')
    result = CliRunner().invoke(app, ["fit", "lineas", str(model), str(tmp_path / "bad.jsonl"), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "bad.jsonl:1" in result.output
