"""One running server for all tests: `guard serve demo` as a process of its own, on a free port, in a fresh home."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.progress import GaveUpError, Patience, Probe, Watched

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "from guard.service.cli.main import main; main()"
# seconds that a server gets to end its requests and its engine
STOP_S = 60.0
# a test of one of these may be the one that starts it, and waits as long as it makes progress (tests/progress.py)
STARTED_ONCE = {"server", "engine_results"}
TEST_S = 900.0


def pytest_configure() -> None:
    """End on these signals as on an interrupt from the keyboard: fixtures end what they have started.

    A job in the background of a shell begins with the interrupt ignored; here it is heard again.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)


def _interrupted(number: int, _: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Give tests that may start a server or an engine the time for it."""
    for item in items:
        if STARTED_ONCE & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(Patience().ceiling_s + TEST_S))


@dataclass(frozen=True)
class RunningServer:
    """A server under test. `trained` says whether it serves the bundled model or one with random weights."""

    url: str
    home: Path
    keys: dict[str, str]
    process: subprocess.Popen[bytes]
    log_file: Path
    trained: bool

    def client(self, tenant: str | None) -> httpx.Client:
        """An HTTP client with the key of `tenant`, or without a key."""
        headers = {} if tenant is None else {"authorization": f"Bearer {self.keys[tenant]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120.0)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def guard_environment(home: Path) -> dict[str, str]:
    """Environment of a guard process whose home is `home`."""
    own = {"GUARD_HOME": str(home), "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1", "GUARD_LOG_LEVEL": "debug"}
    return {**os.environ, **own}


def random_model(folder: Path) -> Path:
    """A two-layer Llama with random weights, the demo's tokenizer and chat template."""
    import torch
    from transformers import LlamaForCausalLM

    from guard.demo.corpus import training_examples
    from guard.demo.train import model_config, train_tokenizer

    train_tokenizer(training_examples("full")).save_pretrained(folder)
    torch.manual_seed(0)
    config = model_config()
    config.num_hidden_layers = 2
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The shared server; tests must leave its demo tenants as they are."""
    home = tmp_path_factory.mktemp("guard-home")
    log_file = home / "server.log"
    url = f"http://127.0.0.1:{(port := free_port())}"
    trained = (ROOT / "guard" / "demo" / "model" / "config.json").is_file()
    arguments = ["demo"]
    if not trained:
        _publish_demo(home, url)
        arguments = [str(random_model(home / "model")), "--served-model-name", "demo"]
    command = [sys.executable, "-c", COMMAND, "serve", *arguments, "--port", str(port), "--max-model-len", "1024"]
    with Watched(command, log_file, cwd=ROOT, environment=guard_environment(home)) as watched:
        with httpx.Client(base_url=url, timeout=5.0) as client:
            try:
                watched.wait_until(lambda: readiness(client), "the server did not become ready")
            except GaveUpError as error:
                pytest.fail(str(error), pytrace=False)
        keys = json.loads((home / "demo_keys.json").read_text(encoding="utf-8"))
        yield RunningServer(url, home, keys, watched.process, log_file, trained)
        already = watched.process.poll()
        left = watched.stop(STOP_S)
        if (already, watched.process.returncode, left) != (None, 0, []):
            pytest.fail(
                f"the server did not stop cleanly after SIGTERM: exit code {watched.process.returncode}, "
                f"{'ended before, ' if already is not None else ''}still running: {left}\n{tail(log_file)}"
            )


def readiness(client: httpx.Client) -> Probe:
    """What `/readyz` says; ages are left out, because they grow by themselves."""
    try:
        reply = client.get("/readyz")
        report = {name: value for name, value in reply.json().items() if not name.endswith("_age_s")}
    except httpx.HTTPError as error:
        return Probe(False, f"/readyz: {type(error).__name__}")
    except (ValueError, AttributeError):
        return Probe(False, f"/readyz: {reply.status_code}, no JSON object")
    return Probe(reply.status_code == 200, f"/readyz: {reply.status_code} {json.dumps(report)}")


def _publish_demo(home: Path, url: str) -> None:
    from guard.demo.setup import prepare_demo
    from guard.service.launch import open_store
    from guard.service.settings import load_settings

    store, _ = open_store(load_settings({"GUARD_HOME": str(home)}))
    prepare_demo(store, home, url)
    store.close()


def tail(log_file: Path) -> str:
    """The end of a log."""
    return log_file.read_text(encoding="utf-8", errors="replace")[-4000:]
