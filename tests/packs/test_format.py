"""Packs on disk and model fingerprints: round trips, and everything that must be refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from guard.errors import PackError
from guard.interventions.eco import EcoConfig, FitCurve, FittedCorruption, load_eco, save_eco
from guard.packs import fingerprint as fingerprint_module
from guard.packs.fingerprint import model_fingerprint
from guard.packs.format import HEADER_FILE, TENSOR_FILE, PackHeader, load_pack, save_pack

MODEL = "fp1:" + "a" * 64
OTHER = "fp1:" + "b" * 64
CONTAINERS = ["pack", "pack.safetensors"]


def _save(path: Path) -> FittedCorruption:
    return save_eco(
        path, EcoConfig(rho=2.5, scope="spans"), model_fingerprint=MODEL, fit_data_digest="c" * 64,
        fit_report={"score": -3.25, "questions": {"fit": 3}}, curve=FitCurve((0.5, 2.5), (-1.0, -3.25)), licence="MIT",
    )


def _header(**changes: object) -> PackHeader:
    values = {
        "kind": "edit", "method": "lineas", "model_fingerprint": MODEL, "sites": ("layers.3.attn_norm",),
        "parameters": {}, "fit_data_digest": "c" * 64, "licence": "MIT",
    }
    return PackHeader.model_validate(values | changes)


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_pack_survives_the_round_trip(name: str, tmp_path: Path) -> None:
    fitted = _save(tmp_path / name)
    assert load_eco(tmp_path / name, model_fingerprint=MODEL) == fitted
    assert (fitted.kind, fitted.rho, fitted.dims, fitted.scope) == ("gauss", 2.5, 0, "spans")
    pack = load_pack(tmp_path / name)
    assert pack.header.created_by.startswith("vllm-guard ")
    assert pack.tensors["fit_score"].tolist() == [-1.0, -3.25]


def test_both_containers_have_the_same_identity_and_content_changes_it(tmp_path: Path) -> None:
    folder, file = (_save(tmp_path / name) for name in CONTAINERS)
    assert folder.pack == file.pack
    tensors = {"w": torch.zeros(2, 3, dtype=torch.bfloat16), "empty": torch.zeros(0)}
    first = save_pack(tmp_path / "one", _header(), tensors)
    assert load_pack(tmp_path / "one").content_hash == first.content_hash
    assert save_pack(tmp_path / "two", _header(licence="GPL"), tensors).content_hash != first.content_hash
    reshaped = {**tensors, "w": tensors["w"].reshape(3, 2)}
    assert save_pack(tmp_path / "three", _header(), reshaped).content_hash != first.content_hash


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_pack_for_another_model_is_refused_with_both_fingerprints(name: str, tmp_path: Path) -> None:
    _save(tmp_path / name)
    with pytest.raises(PackError) as caught:
        load_eco(tmp_path / name, model_fingerprint=OTHER)
    assert MODEL in str(caught.value)
    assert OTHER in str(caught.value)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.floats(0, 1, exclude_max=True), name=st.sampled_from(CONTAINERS))
def test_a_truncated_pack_is_refused(keep: float, name: str, tmp_path: Path) -> None:
    _save(tmp_path / name)
    path = tmp_path / name / TENSOR_FILE if name == "pack" else tmp_path / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(PackError):
        load_pack(tmp_path / name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_is_refused(where: float, flip: int, tmp_path: Path) -> None:
    path = tmp_path / "pack.safetensors"
    fitted = _save(path)
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= flip
    path.write_bytes(bytes(content))
    try:
        pack = load_pack(path)
    except PackError:
        return
    # only bytes without meaning, such as white space in the header, may change unnoticed
    assert pack.content_hash == fitted.pack


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_non_finite_tensors_are_refused_when_written_and_when_read(number: float, tmp_path: Path) -> None:
    bad = {"w": torch.tensor([1.0, number])}
    with pytest.raises(PackError, match="non-finite"):
        save_pack(tmp_path / "bad", _header(), bad)
    good = save_pack(tmp_path / "pack", _header(), {"w": torch.ones(2)})
    save_file(bad, tmp_path / "pack" / TENSOR_FILE)
    from guard.packs.format import content_hash

    sealed = good.header.model_copy(update={"content_hash": content_hash(good.header, bad)})
    (tmp_path / "pack" / HEADER_FILE).write_text(sealed.model_dump_json())
    with pytest.raises(PackError, match="non-finite"):
        load_pack(tmp_path / "pack")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_non_finite_header_numbers_are_refused(constant: str, tmp_path: Path) -> None:
    _save(tmp_path / "pack")
    path = tmp_path / "pack" / HEADER_FILE
    path.write_text(path.read_text().replace("2.5", constant, 1))
    with pytest.raises(PackError):
        load_pack(tmp_path / "pack")


@pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/hostname", "", ".", "a\x00b", "link.safetensors"])
def test_a_tensor_file_outside_the_folder_is_refused(target: str, tmp_path: Path) -> None:
    _save(tmp_path / "pack")
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((tmp_path / "pack" / TENSOR_FILE).read_bytes())
    os.symlink(outside, tmp_path / "pack" / "link.safetensors")
    path = tmp_path / "pack" / HEADER_FILE
    header = json.loads(path.read_text())
    path.write_text(json.dumps(header | {"tensors": target}))
    with pytest.raises(PackError):
        load_pack(tmp_path / "pack")


def test_headers_with_unknown_keys_or_without_a_hash_are_refused(tmp_path: Path) -> None:
    _save(tmp_path / "pack")
    path = tmp_path / "pack" / HEADER_FILE
    header = json.loads(path.read_text())
    unsealed, forged = header | {"content_hash": None}, header | {"content_hash": "0" * 64}
    changes: list[object] = [header | {"run": "me"}, unsealed, forged, []]
    for changed in changes:
        path.write_text(json.dumps(changed))
        with pytest.raises(PackError):
            load_pack(tmp_path / "pack")
    for missing in (tmp_path / "nowhere", tmp_path / "nowhere.safetensors"):
        with pytest.raises(PackError):
            load_pack(missing)


def test_an_edit_pack_is_no_corruption_pack(tmp_path: Path) -> None:
    save_pack(tmp_path / "edit", _header(), {"w": torch.ones(1)})
    with pytest.raises(PackError, match="not a corruption pack"):
        load_eco(tmp_path / "edit", model_fingerprint=MODEL)


def _write_model(folder: Path, shards: list[dict[str, torch.Tensor]], **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 4, "transformers_version": "1"} | config))
    for index, shard in enumerate(shards):
        save_file(shard, folder / f"model-{index}.safetensors")
    return folder


def test_fingerprint_follows_the_model_and_not_its_packaging(tmp_path: Path) -> None:
    first, second = torch.arange(40_000.0), torch.ones(2, 2)
    plain = model_fingerprint(_write_model(tmp_path / "plain", [{"a": first, "b": second}]))
    sharded = _write_model(tmp_path / "sharded", [{"b": second}, {"a": first}], transformers_version="2")
    assert model_fingerprint(sharded) == plain
    changed = first.clone()
    changed[777] += 1
    others: list[Path] = [
        _write_model(tmp_path / "value", [{"a": changed, "b": second}]),
        _write_model(tmp_path / "name", [{"a": first, "c": second}]),
        _write_model(tmp_path / "shape", [{"a": first, "b": second.reshape(4)}]),
        _write_model(tmp_path / "config", [{"a": first, "b": second}], hidden_size=8),
    ]
    assert len({plain, *map(model_fingerprint, others)}) == 5


def test_large_models_are_sampled_and_still_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint_module, "WHOLE_LIMIT_BYTES", 1000)
    weights = torch.arange(40_000.0)
    changed = weights.clone()
    changed[-1] += 1
    folders = [_write_model(tmp_path / name, [{"a": each}]) for name, each in (("x", weights), ("y", changed))]
    assert model_fingerprint(folders[0]) != model_fingerprint(folders[1])


def test_a_model_without_readable_weights_has_no_fingerprint(tmp_path: Path) -> None:
    folder = _write_model(tmp_path / "model", [{"a": torch.ones(8)}])
    weights = folder / "model-0.safetensors"
    content = weights.read_bytes()
    for broken in (content[:-4], content[:20], b"", b"\xff" * 64):
        weights.write_bytes(broken)
        with pytest.raises(PackError):
            model_fingerprint(folder)
    weights.unlink()
    with pytest.raises(PackError, match="no .*safetensors"):
        model_fingerprint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(PackError, match=r"config\.json"):
        model_fingerprint(folder)
