"""Starts each kind of engine once per session, as a process of its own, and hands its results to the tests."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.progress import GaveUpError, Watched

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUNDLED = ROOT / "guard/demo/model"

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
    log = folder.with_suffix(".log")
    failure = _finish([sys.executable, str(HERE / "tiny_model.py"), str(folder)], log, _environment("v1"))
    if failure is not None or not (folder / "config.json").is_file():
        pytest.fail(f"the tiny model was not made:\n{failure or log.read_text()[-6000:]}", pytrace=False)
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
    failure = _finish(command, log, environment)
    if failure is not None or not output.exists():
        return failure or log.read_text()[-6000:]
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def _finish(command: list[str], log: Path, environment: dict[str, str]) -> str | None:
    """Let a command run to its end for as long as it makes progress; why it was given up, or None."""
    with Watched(command, log, cwd=ROOT, environment=environment) as watched:
        try:
            watched.wait_for_end("it did not finish")
        except GaveUpError as error:
            return str(error)
    return None


@pytest.fixture(scope="session")
def masking(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A logits processor that is connected to constraint slots; see `tests.engine.masking.Masking`."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from tests.engine.masking import Masking

    return Masking(tmp_path_factory.mktemp("masking"))


@pytest.fixture(scope="session")
def tokenizer(masking: Any) -> Any:
    """The tokenizer of that processor."""
    return masking.tokenizer


@pytest.fixture(scope="session")
def processor(masking: Any) -> Any:
    """That processor."""
    return masking.processor


@pytest.fixture(scope="session")
def slots(masking: Any) -> Any:
    """Its constraint slots."""
    return masking.slots


@pytest.fixture(scope="session")
def automaton(masking: Any) -> Any:
    """Its resident automaton."""
    return masking.automaton


@pytest.fixture
def empty_batch(masking: Any) -> None:
    """No request is in the batch."""
    from tests.engine.masking import update

    masking.processor.update_state(update(removed=sorted(masking.processor.rows)))
