"""`guard pack add`, `list`, `remove`, and `guard apply` with policies that name packs."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from guard.errors import PackError
from guard.interventions.steer import save_steer
from guard.packs.format import load_pack, save_pack
from guard.service.store.engine_record import EngineRecord
from guard.service.store.pack_files import copy_pack, examine_pack, pack_path
from guard.site import Site
from tests.service.cli.command_line import run, stored

MODEL = "fp1:" + "a" * 64
TENANTS = """\
version: 1
tenants:
  - name: acme
    policy:
      edits:
        - pack: calm
          strength: 2
          targets: {Hina Ameen: 0.5}
          response: [{score: 0.5, strength: 0.2}, {score: 0.9, strength: 1}]
    targets:
      - name: Hina Ameen
"""


def steer_pack(path: Path, value: float = 1.0, site: str = "1.resid_post") -> Path:
    """A steering vector for a model of width 8."""
    save_steer(
        path, {Site.parse(site): torch.full((8,), value)}, model_fingerprint=MODEL, fit_data_digest="0" * 64,
        fit_report={}, licence="Apache-2.0",
    )
    return path


def applied(tmp_path: Path, text: str = TENANTS) -> Result:
    path = tmp_path / "tenants.yaml"
    path.write_text(text, encoding="utf-8")
    return run("apply", path)


def test_a_pack_is_copied_privately_under_its_hash_and_listed(home: Path, tmp_path: Path) -> None:
    assert run("pack", "add", steer_pack(tmp_path / "x.safetensors"), "--name", "calm").exit_code == 0
    (row,) = json.loads(run("pack", "list", "--json").stdout)
    assert (row["name"], row["kind"], row["method"], row["sites"]) == ("calm", "edit", "steer", "1.resid_post")
    path = pack_path(home, row["content_hash"])
    assert load_pack(path).content_hash == row["content_hash"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [child.name for child in path.parent.iterdir()] == [path.name]
    assert "calm" in run("pack", "list").stdout


def test_both_containers_are_the_same_pack(home: Path, tmp_path: Path) -> None:
    loaded = load_pack(steer_pack(tmp_path / "x.safetensors"))
    save_pack(tmp_path / "folder", loaded.header, loaded.tensors)
    run("pack", "add", tmp_path / "x.safetensors", "--name", "calm")
    again = run("pack", "add", tmp_path / "folder", "--name", "calm")
    assert (again.exit_code, again.stdout.strip()) == (0, f"calm: edit {loaded.content_hash} (unchanged)")


def test_a_damaged_pack_is_refused_and_nothing_is_stored(home: Path, tmp_path: Path) -> None:
    path = steer_pack(tmp_path / "x.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = run("pack", "add", path, "--name", "calm")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert not (home / "packs").exists()


def test_a_damaged_copy_is_written_again(home: Path, tmp_path: Path) -> None:
    pack, record = examine_pack(steer_pack(tmp_path / "x.safetensors"), "calm")
    path = copy_pack(pack, home)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(PackError):
        load_pack(path)
    assert load_pack(copy_pack(pack, home)).content_hash == record.content_hash


@pytest.mark.parametrize("name", ["Calm", "../calm", "", "a" * 64])
def test_a_name_that_policies_could_not_say_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    result = run("pack", "add", steer_pack(tmp_path / "x.safetensors"), "--name", name)
    assert result.exit_code == 2
    assert "lower-case letters" in result.stderr


def test_a_name_moves_with_replace_and_unused_files_go(home: Path, tmp_path: Path) -> None:
    first = load_pack(steer_pack(tmp_path / "1.safetensors")).content_hash
    second = load_pack(steer_pack(tmp_path / "2.safetensors", 2.0)).content_hash
    third = load_pack(steer_pack(tmp_path / "3.safetensors", 3.0)).content_hash
    run("pack", "add", tmp_path / "1.safetensors", "--name", "calm")
    refused = run("pack", "add", tmp_path / "2.safetensors", "--name", "calm")
    assert refused.exit_code == 2 and "--replace" in refused.stderr
    run("pack", "add", tmp_path / "2.safetensors", "--name", "calm", "--replace")
    assert [pack_path(home, each).exists() for each in (first, second)] == [False, True]
    assert applied(tmp_path).exit_code == 0
    # a stored policy holds on to the pack that it was applied with
    run("pack", "add", tmp_path / "3.safetensors", "--name", "calm", "--replace")
    assert [pack_path(home, each).exists() for each in (second, third)] == [True, True]
    assert stored(home).snapshot().tenants["acme"].policy.edits[0].pack == second


def test_a_pack_is_removed_with_its_file_unless_a_policy_needs_it(home: Path, tmp_path: Path) -> None:
    run("pack", "add", steer_pack(tmp_path / "x.safetensors"), "--name", "calm")
    applied(tmp_path)
    refused = run("pack", "remove", "calm")
    assert refused.exit_code == 2 and "policy of acme" in refused.stderr
    assert applied(tmp_path, "version: 1\ntenants:\n  - name: acme\n").exit_code == 0
    assert run("pack", "remove", "calm").exit_code == 0
    assert not list((home / "packs").iterdir())
    assert run("pack", "remove", "calm").exit_code == 2


def test_apply_keeps_the_whole_edit(home: Path, tmp_path: Path) -> None:
    run("pack", "add", steer_pack(tmp_path / "x.safetensors"), "--name", "calm")
    assert applied(tmp_path).exit_code == 0
    (edit,) = stored(home).snapshot().tenants["acme"].policy.edits
    assert (edit.strength, edit.targets) == (2.0, {"Hina Ameen": 0.5})
    assert [(point.score, point.strength) for point in edit.response] == [(0.5, 0.2), (0.9, 1.0)]


def test_an_unknown_pack_is_told_with_line_and_field(home: Path, tmp_path: Path) -> None:
    result = applied(tmp_path)
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first.startswith("guard: error: line 6: tenants[0].policy.edits[0].pack: the store has no pack calm")
    assert "unchanged" in second
    assert not stored(home).snapshot().tenants


def test_sites_that_the_server_does_not_steer_are_told_with_those_it_does(home: Path, tmp_path: Path) -> None:
    run("pack", "add", steer_pack(tmp_path / "x.safetensors", site="2.mlp_norm"), "--name", "calm")
    record = EngineRecord(("1.resid_post", "3.resid_post"), 64, 16, 8, 4, MODEL)
    stored(home).record_engine(record)
    result = applied(tmp_path)
    assert result.exit_code == 1
    assert "line 6: tenants[0].policy.edits[0].pack" in result.stderr
    assert "does not steer: 2.mlp_norm; steerable: 1.resid_post, 3.resid_post" in result.stderr
