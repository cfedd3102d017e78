"""Starts each kind of engine once per session, as a process of its own, and hands its results to the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUNDLED = ROOT / "guard/demo/model"
TIMEOUT_S = 600

Results = Callable[..., dict[str, Any]]


def _environment(runner: str) -> dict[str, str]:
    # this folder by name: with PYTHONSAFEPATH a script's own folder is not searched
    path = [str(HERE), str(ROOT)] if runner == "v1" else [str(HERE / "v2_on_cpu"), str(HERE), str(ROOT)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "VLLM_USE_V2_MODEL_RUNNER": "1" if runner == "v2" else "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_PLUGINS": "",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        # one thread: sums are added in one order, and two cores are shared with other tests
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random model."""
    folder = tmp_path_factory.mktemp("tiny-model")
    subprocess.run(  # noqa: S603
        [sys.executable, str(HERE / "tiny_model.py"), str(folder)], check=True, cwd=ROOT, env=_environment("v1"),
        timeout=TIMEOUT_S,
    )
    return folder


@pytest.fixture(scope="session")
def engine_results(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A function (kind, runner, *flags) -> what that engine observed; every engine runs once."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = tmp_path_factory.mktemp("engine-results")
    # one compile cache for all engines, stock ones included, as on a machine where both have run
    cache = tmp_path_factory.mktemp("compile-cache")
    known: dict[tuple[str, ...], dict[str, Any] | str] = {}

    def results(kind: str, runner: str, *flags: str) -> dict[str, Any]:
        which = (kind, runner, *flags)
        if which not in known:
            model = BUNDLED if "--fitted" in flags else tiny_model
            known[which] = _run(which, model, folder / ("-".join(which) + ".json"), cache)
        found = known[which]
        if isinstance(found, str):
            pytest.fail(f"the engine {which} did not finish:\n{found}", pytrace=False)
        return found

    return results


def _run(which: tuple[str, ...], model: Path, output: Path, cache: Path) -> dict[str, Any] | str:
    kind, runner, *flags = which
    environment = _environment(runner) | {"VLLM_CACHE_ROOT": str(cache)}
    if kind == "stock":
        # stock engines are asked by a function for what they compiled; guarded ones refuse this switch
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    command = [sys.executable, str(HERE / "scenarios.py"), kind, runner, str(model), str(output), *flags]
    log = output.with_suffix(".log")
    with log.open("w") as stream:
        try:
            subprocess.run(  # noqa: S603
                command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT,
                timeout=TIMEOUT_S, check=False,
            )
        except subprocess.TimeoutExpired:
            stream.write(f"\nstopped after {TIMEOUT_S} s")
    if not output.exists():
        return log.read_text()[-6000:]
    found: dict[str, Any] = json.loads(output.read_text())
    return found
