"""The command line: transactional apply, keys shown once, exit codes, no tracebacks, a fast start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guard.errors import ConfigurationError
from guard.service.cli.main import split_own_options
from guard.service.settings import Settings
from guard.service.store.keys import find_tenant, load_pepper
from guard.service.store.running import announce, withdraw
from tests.service.cli.command_line import run, stored

GOOD = """\
version: 1
tenants:
  - name: acme
    targets:
      - name: Hina Ameen
  - name: open
"""
BAD = GOOD.replace("  - name: open", "  - name: open\n    polcy: {}")


def write(folder: Path, text: str) -> Path:
    path = folder / "tenants.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_apply_creates_tenants_and_says_so(home: Path, tmp_path: Path) -> None:
    result = run("apply", write(tmp_path, GOOD), "--json")
    assert result.exit_code == 0
    assert [(row["tenant"], row["change"], row["targets"]) for row in json.loads(result.stdout)] == [
        ("acme", "created", 1), ("open", "created", 0),
    ]
    assert set(stored(home).snapshot().tenants) == {"acme", "open"}


def test_apply_says_which_store_it_wrote_to(home: Path, tmp_path: Path) -> None:
    assert run("apply", write(tmp_path, GOOD)).stderr == f"2 of 2 tenants changed in the store {home / 'guard.db'}\n"
    assert run("apply", write(tmp_path, GOOD)).stderr == f"0 of 2 tenants changed in the store {home / 'guard.db'}\n"


def test_commands_warn_when_the_server_in_this_folder_reads_another_store(home: Path, tmp_path: Path) -> None:
    run("apply", write(tmp_path, GOOD))
    # this process stands for the server
    announce(home, str(home / "guard.db"), "http://127.0.0.1:8000")
    same = run("apply", write(tmp_path, GOOD)).stderr
    assert same.endswith("which the server at http://127.0.0.1:8000 reads\n") and "warning" not in same
    elsewhere = ("--database-url", f"sqlite:///{tmp_path}/other.db")
    for command in (
        ("apply", write(tmp_path, GOOD)), ("key", "create", "acme"), ("tenant", "delete", "acme", "--yes")
    ):
        result = run(*command, *elsewhere)
        assert result.exit_code == 0
        assert f"in the store {tmp_path}/other.db\nguard: warning: the server at" in result.stderr
        assert f"reads another store, {home / 'guard.db'}, and does not see this" in result.stderr
    withdraw(home)
    assert "warning" not in run("apply", write(tmp_path, GOOD), *elsewhere).stderr


def test_of_a_long_file_the_table_shows_what_changed(home: Path, tmp_path: Path) -> None:
    text = "tenants:\n" + "".join(f"  - name: t{number}\n" for number in range(60))
    run("apply", write(tmp_path, text))
    again = write(tmp_path, text + "  - name: acme\n")
    result = run("apply", again)
    assert [line.split()[:3] for line in result.stdout.splitlines()[1:]] == [["acme", "61", "created"]]
    assert result.stderr.startswith("1 of 61 tenants changed")
    assert len(json.loads(run("apply", again, "--json").stdout)) == 61


@pytest.mark.parametrize("bad", [BAD, "tenants: [", GOOD.replace("Hina Ameen", "the"), ""])
def test_a_bad_file_leaves_the_policy_untouched_and_names_the_line(home: Path, tmp_path: Path, bad: str) -> None:
    run("apply", write(tmp_path, GOOD))
    before = stored(home).snapshot()
    result = run("apply", write(tmp_path, bad))
    assert result.exit_code == 1
    assert "line " in result.stderr
    assert "unchanged" in result.stderr
    assert stored(home).snapshot() == before


def test_the_line_and_the_key_are_printed(home: Path, tmp_path: Path) -> None:
    result = run("validate", write(tmp_path, BAD))
    assert result.exit_code == 1
    assert result.stderr.startswith("guard: error: line 7: tenants[1].polcy: unknown key; did you mean `policy`?")


def test_a_common_word_is_applied_with_a_warning(home: Path, tmp_path: Path) -> None:
    text = "version: 1\ntenants:\n  - name: acme\n    targets: [{name: Paris}]\n"
    for command in ("validate", "apply"):
        result = run(command, write(tmp_path, text))
        assert result.exit_code == 0
        assert "guard: warning: line 4: tenants[0].targets[0].name: is one common word" in result.stderr
        assert "Paris" not in result.stderr
    assert set(stored(home).snapshot().tenants) == {"acme"}


def test_validate_writes_nothing(home: Path, tmp_path: Path) -> None:
    assert run("validate", write(tmp_path, GOOD)).exit_code == 0
    assert not home.exists()


def test_a_key_is_shown_once_and_works_until_revoked(home: Path, tmp_path: Path) -> None:
    run("apply", write(tmp_path, GOOD))
    created = run("key", "create", "acme", "--label", "ci [bold]")
    key = created.stdout.strip()
    pepper = load_pepper(home)
    assert find_tenant(key, stored(home).snapshot().keys, pepper) == "acme"
    listed = run("key", "list", "--json")
    assert key not in listed.stdout
    (row,) = json.loads(listed.stdout)
    assert (row["tenant"], row["label"]) == ("acme", "ci [bold]")
    assert "ci [bold]" in run("key", "list").stdout
    assert run("key", "revoke", row["id"]).exit_code == 0
    assert find_tenant(key, stored(home).snapshot().keys, pepper) is None


def test_tenants_are_listed_shown_without_terms_and_deleted(home: Path, tmp_path: Path) -> None:
    run("apply", write(tmp_path, GOOD))
    (first, _) = json.loads(run("tenant", "list", "--json").stdout)
    assert (first["name"], first["targets"]) == ("acme", 1)
    assert "acme" in run("tenant", "list").stdout
    assert "Hina" not in run("tenant", "show", "acme").stdout
    assert "Hina Ameen" in run("tenant", "show", "acme", "--terms").stdout
    assert run("tenant", "delete", "acme", "--yes").exit_code == 0
    assert set(stored(home).snapshot().tenants) == {"open"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("key", "create", "nobody"), ("key", "revoke", "000000000000"), ("tenant", "show", "nobody"),
        ("tenant", "delete", "nobody", "--yes"), ("tenant", "list", "--database-url", "mysql://x/y"),
        ("check", "hello", "--tenant", "nobody"), ("selftest", "--url", "http://127.0.0.1:1"),
        ("selftest", "--url", "nonsense"), ("demo", "--url", "http://127.0.0.1:1"),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_code_2(home: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run("apply", write(tmp_path, GOOD))
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("guard: error: ")
    assert result.stderr.count("\n") == 1


def test_reading_commands_without_a_store_fail_and_create_nothing(home: Path) -> None:
    for arguments in (("tenant", "list"), ("key", "list"), ("key", "create", "acme")):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "guard apply" in result.stderr
    assert not home.exists()


def test_a_damaged_pack_is_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"junk")
    result = run("pack", "verify", tmp_path / "x.safetensors")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1


def test_the_schema_is_json(home: Path) -> None:
    assert json.loads(run("schema").stdout)["title"] == "vllm-guard tenant file"


def test_check_shows_which_target_a_prompt_touches(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_ENCODER", "none")
    policy = "    policy: {detector: {semantic: false, head: false}}\n    targets:"
    run("apply", write(tmp_path, GOOD.replace("    targets:", policy)))
    touched = json.loads(run("check", "Who is Hina Ameen?", "--tenant", "acme", "--json").stdout)
    assert touched["action"] == "forget"
    assert [(hit["target"], hit["name"]) for hit in touched["hits"]] == [(0, "Hina Ameen")]
    untouched = json.loads(run("check", "What is 2 + 2?", "--tenant", "acme", "--json").stdout)
    assert (untouched["action"], untouched["hits"]) == ("pass", [])


def test_serve_passes_unknown_flags_through_in_order(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    seen: list[object] = []

    def serve(model: str, extra: list[str], settings: Settings) -> int:
        seen.extend((model, extra, settings.home))
        return 0

    monkeypatch.setattr("guard.service.launch.serve", serve)
    other = home.with_name("other")
    flags = ["--port", "9000", "-tp", "2", "--max-model-len=512", "-O3", "--override", '{"a": 1}', "--version", "x y"]
    result = run("serve", "demo", *flags, "--home", other, "--help")
    assert result.exit_code == 0
    assert seen == ["demo", [*flags, "--help"], other]
    # options are values; the environment of later commands stays as it was
    assert os.environ["GUARD_HOME"] == str(home)


def test_serve_ends_with_the_servers_exit_code_and_one_line_for_errors(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    def refuse(model: str, extra: list[str], settings: Settings) -> int:
        raise ConfigurationError("port 8000\nis in use")

    monkeypatch.setattr("guard.service.launch.serve", refuse)
    result = run("serve", "demo")
    assert (result.exit_code, result.stderr) == (2, "guard: error: port 8000 is in use\n")


def test_own_options_are_taken_out_of_the_flags_after_the_model() -> None:
    assert split_own_options(["--a", "--home=x", "--database-url", "u", "--homeless"]) == (
        {"--home": "x", "--database-url": "u"}, ["--a", "--homeless"],
    )
    assert split_own_options(["--guard-sites=all", "-tp", "2", "--guard-max-slots", "9", "--guard-max-rank=32"]) == (
        {"--guard-sites": "all", "--guard-max-slots": "9", "--guard-max-rank": "32"}, ["-tp", "2"],
    )
    with pytest.raises(ConfigurationError):
        split_own_options(["--home"])


@pytest.mark.parametrize("before", [True, False])
def test_flags_of_edits_reach_the_settings_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch, home: Path, before: bool
) -> None:
    seen: list[Settings] = []
    for variable in ("GUARD_SITES", "GUARD_MAX_SLOTS", "GUARD_MAX_RANK"):
        monkeypatch.setenv(variable, "7" if variable == "GUARD_MAX_SLOTS" else "")

    def serve(model: str, extra: list[str], settings: Settings) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr("guard.service.launch.serve", serve)
    flags = ["--guard-sites", "2.resid_post", "--guard-max-rank=32"]
    result = run("serve", *flags, "demo") if before else run("serve", "demo", *flags)
    assert result.exit_code == 0, result.stderr
    assert (seen[0].sites, seen[0].max_slots, seen[0].max_rank) == ("2.resid_post", 7, 32)


def test_a_real_process_applies_without_loading_the_model_libraries(home: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from guard.service.cli.main import app\n"
        "try: app()\n"
        "finally: print([name for name in ('torch', 'vllm', 'transformers', 'sentence_transformers', 'faiss') "
        "if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, "apply", str(write(tmp_path, GOOD)), "--home", str(home), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    module = [sys.executable, "-m", "guard.service.cli.main", "apply", str(write(tmp_path, BAD))]
    failed = subprocess.run(module, capture_output=True, text=True, check=False, timeout=60)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "line 7: tenants[1].polcy" in failed.stderr
