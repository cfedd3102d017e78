"""What an operator can get wrong at start: one clear line and exit code 2, before the engine is started."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from guard.engine import serve as engine_serve
from guard.engine.compat import NO_FINGERPRINT
from guard.errors import ConfigurationError
from guard.packs.fingerprint import model_fingerprint
from guard.policy import OutputPolicy, Policy, Snapshot, Target, TenantSpec, tenant_of
from guard.service.launch import check_encoder, resolve_model
from guard.service.loading import load_edit_settings
from guard.service.settings import Settings, load_settings
from tests.conftest import COMMAND, ROOT, free_port, guard_environment


def serve(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `guard serve` and wait for its end."""
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "serve", *arguments],
        env={**guard_environment(home), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    return result.stderr.strip().splitlines()[-1]


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    result = serve(tmp_path, str(tmp_path / "nothing"))
    assert result.returncode == 2
    assert "model not found" in last_line(result)
    assert "Traceback" not in result.stderr


def test_a_wrong_setting_names_its_variable(tmp_path: Path) -> None:
    result = serve(tmp_path, "demo", GUARD_RELOAD_INTERVAL_S="soon")
    assert result.returncode == 2
    assert "GUARD_RELOAD_INTERVAL_S" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that looks like a model: enough for everything that is checked before the engine starts."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return str(folder)


@pytest.mark.slow
def test_a_port_in_use(model: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = serve(tmp_path / "home", model, "--port", port)
    assert result.returncode == 2
    assert f"port {port}" in last_line(result) and "in use" in last_line(result)
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.vllm
def test_a_cache_that_does_not_fit_is_refused_before_the_engine_starts(tmp_path: Path) -> None:
    flags = ["--port", str(free_port())]
    result = serve(tmp_path, "demo", *flags, VLLM_CPU_KVCACHE_SPACE="4096", GUARD_ENCODER="none")
    assert result.returncode == 2
    assert "not enough memory for the cache: 4096.00 GiB" in last_line(result)
    assert "VLLM_CPU_KVCACHE_SPACE" in last_line(result)
    assert "Traceback" not in result.stderr and "EngineCore" not in result.stderr


@pytest.mark.slow
@pytest.mark.vllm
def test_a_start_that_fails_in_a_worker_ends_in_one_line_and_keeps_the_trace(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("demo").path, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # twice the width: the weights do not fit
    config["hidden_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.rmtree(folder / "eco")
    result = serve(tmp_path, str(folder), "--port", str(free_port()), GUARD_ENCODER="none")
    assert result.returncode == 2
    assert last_line(result).startswith("guard: error: the server did not start: ")
    assert "Traceback" not in result.stdout + result.stderr
    traces = (tmp_path / "start_failure.log").read_text(encoding="utf-8")
    assert "load_model" in traces
    assert str(tmp_path / "start_failure.log") in last_line(result)
    assert list(tmp_path.glob(".start_failures.*")) == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--enable-prompt-embeds"],
        ["--middleware", "somewhere.else"],
        ["--enable-lora"],
        ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"],
        ["--enable-prompt-tokens-details"],
        ["--api-key", "secret"],
    ],
)
def test_a_flag_that_opens_a_way_round_is_refused_by_name(model: str, flags: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=flags[0]):
        engine_serve.build_arguments(model, flags, served_name=None, drain_timeout_s=30)


def test_an_environment_variable_that_opens_a_door_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    with pytest.raises(ConfigurationError, match="VLLM_SERVER_DEV_MODE"):
        engine_serve.prepare_environment()


def test_an_encoder_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from guard.classifiers import encoder

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="encoder"):
        encoder.find_encoder("auto")


def test_comparing_by_meaning_needs_an_encoder_at_the_start() -> None:
    policy = Policy(output=OutputPolicy(semantic=True))
    asking = tenant_of(TenantSpec(name="acme", policy=policy, targets=(Target(name="Hina Ameen"),)), 1)
    other = tenant_of(TenantSpec(name="open", policy=policy), 2)
    with pytest.raises(ConfigurationError, match="output.semantic of acme needs a sentence encoder"):
        check_encoder(Settings(encoder="none"), Snapshot(1, {"acme": asking, "open": other}))
    check_encoder(Settings(encoder="none"), Snapshot(1, {"open": other}))
    check_encoder(Settings(), Snapshot(1, {"acme": asking}))


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    settings = load_settings({"GUARD_HOME": str(tmp_path), "GUARD_MAX_BODY_BYTES": "2048", "OTHER": "x"})
    assert (settings.home, settings.max_body_bytes) == (tmp_path, 2048)
    assert settings.store_url == f"sqlite:///{tmp_path / 'guard.db'}"
    assert load_settings({"GUARD_DATABASE_URL": "postgresql://db/guard"}).store_url == "postgresql://db/guard"


def test_options_stand_over_the_environment_and_empty_ones_do_not(tmp_path: Path) -> None:
    environment = {"GUARD_HOME": "elsewhere", "GUARD_MAX_SLOTS": "7", "GUARD_SITES": ""}
    settings = load_settings(environment, {"home": tmp_path, "max_slots": None, "database_url": "", "max_rank": "32"})
    assert (settings.home, settings.max_slots, settings.max_rank) == (tmp_path, 7, 32)
    assert (settings.sites, settings.database_url) == ("auto", "")
    with pytest.raises(ConfigurationError, match="GUARD_MAX_RANK"):
        load_settings(environment, {"max_rank": "24"})


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_settings_of_edits_follow_the_model(tmp_path: Path, model: str) -> None:
    config = Path(model) / "config.json"
    config.write_text('{"num_hidden_layers": 4, "hidden_size": 8}', encoding="utf-8")
    found = load_edit_settings(Settings(sites="1.resid_post,3.mlp_norm", max_slots=7, max_rank=32), model)
    assert (found.sites, found.max_slots, found.max_rank) == ("1.resid_post,3.mlp_norm", 7, 32)
    assert found.fingerprint == NO_FINGERPRINT  # the folder holds no weights
    with pytest.raises(ConfigurationError, match=r"'4.resid_post' names layers outside 0..3"):
        load_edit_settings(Settings(sites="4.resid_post"), model)


@pytest.mark.parametrize("sites", ["everything", "1.resid", "2-1.mlp_norm", "1.resid_post,,"])
def test_sites_are_checked_before_anything_slow(tmp_path: Path, sites: str) -> None:
    with pytest.raises(ConfigurationError, match="sites:"):
        load_edit_settings(Settings(sites=sites), "somebody/else")


def test_the_bundled_model_has_the_fingerprint_that_packs_carry() -> None:
    folder = resolve_model("demo").path
    assert load_edit_settings(Settings(), folder).fingerprint == model_fingerprint(Path(folder))


@pytest.mark.parametrize(
    ("variable", "value"), [("GUARD_MAX_RANK", "24"), ("GUARD_MAX_RANK", "64"), ("GUARD_MAX_SLOTS", "0")]
)
def test_a_wrong_setting_of_edits_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        load_settings({variable: value})
