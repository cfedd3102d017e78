"""One running server for all tests: `guard serve demo` as a process of its own, on a free port, in a fresh home."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

START_S = 300.0
ROOT = Path(__file__).resolve().parents[1]
COMMAND = "from guard.service.cli.main import main; main()"


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
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "serve", *arguments, "--port", str(port), "--max-model-len", "1024"],
            env=guard_environment(home),
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(url, process, log_file)
        keys = json.loads((home / "demo_keys.json").read_text(encoding="utf-8"))
        yield RunningServer(url, home, keys, process, log_file, trained)
    finally:
        already = process.poll()
        process.send_signal(signal.SIGTERM)
        try:
            ended = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            ended = process.wait()
        if (already, ended) != (None, 0):
            pytest.fail(f"the server did not stop cleanly after SIGTERM: {already or ended}\n{tail(log_file)}")


def _publish_demo(home: Path, url: str) -> None:
    from guard.demo.setup import prepare_demo
    from guard.service.launch import open_store
    from guard.service.settings import load_settings

    store, _ = open_store(load_settings({"GUARD_HOME": str(home)}))
    prepare_demo(store, home, url)
    store.close()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log_file: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/readyz", timeout=5.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    pytest.fail(f"the server did not become ready (exit code {process.poll()}):\n{tail(log_file)}")


def tail(log_file: Path) -> str:
    """The end of a log."""
    return log_file.read_text(encoding="utf-8", errors="replace")[-4000:]
