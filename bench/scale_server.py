"""A guard server as a process of its own for `bench/scale.py`: start, memory of its processes, counters, end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from throughput import DEMO, free_port

COMMAND = [sys.executable, "-m", "guard.service.cli.main"]
READY_S = 1800.0
STOP_S = 90.0
MODEL = "bench"


@dataclass(frozen=True)
class Server:
    """A server that is ready. `start_s`: seconds from the start of its process until it was."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]
    start_s: float

    def memory(self) -> dict[str, float]:
        """Resident memory in kB by kind of process: server, engine, worker, in all."""
        found = {"server": 0.0, "engine": 0.0, "worker": 0.0}
        for member in family(self.process.pid):
            with suppress(psutil.Error):
                found[_kind(member, self.process.pid)] += member.memory_info().rss / 1000
        return found | {"total": sum(found.values())}

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every sample of `/metrics` by name and labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=60.0, trust_env=False).text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for metric in text_string_to_metric_families(text) for sample in metric.samples
        }


def total(metrics: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    """Sum of the samples called `name` that have these labels."""
    wanted = set(labels.items())
    return sum(value for (found, has), value in metrics.items() if found == name and wanted <= has)


def guard(home: Path, *arguments: str | Path) -> float:
    """Run a command of `guard`; the seconds that it took. Raises SystemExit with its errors."""
    began_s = time.perf_counter()
    done = subprocess.run(
        [*COMMAND, *map(str, arguments), "--home", str(home)], capture_output=True, text=True, env=_environment(home)
    )
    if done.returncode:
        raise SystemExit(f"guard {' '.join(map(str, arguments))} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - began_s


class Publisher:
    """`bench/scale_publish.py`, started and waiting; `run` lets it go and waits for its end."""

    def __init__(self, home: Path, file: Path, pause_s: float) -> None:
        script = Path(__file__).with_name("scale_publish.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(home), str(file), str(pause_s)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=_environment(home),
        )
        if self._process.stdout is None or self._process.stdout.readline() != "ready\n":
            raise SystemExit("the process that publishes did not start")

    def run(self) -> None:
        """Publish everything. Raises SystemExit when that fails."""
        self._process.communicate("go\n")
        if self._process.returncode:
            raise SystemExit(f"the process that publishes ended with {self._process.returncode}")


def endless_model(folder: Path) -> Path:
    """A copy of the bundled model whose answers do not end by themselves: its own are over before a batch has filled.

    Only the number of the token that ends an answer differs; it becomes the padding token's.
    """
    model = folder / "model"
    if not model.exists():
        shutil.copytree(DEMO / "model", model)
        for name, changes in (
            ("generation_config.json", {"eos_token_id": 0}), ("tokenizer_config.json", {"eos_token": "<|pad|>"}),
        ):
            content = json.loads((model / name).read_text(encoding="utf-8"))
            (model / name).write_text(json.dumps(content | changes), encoding="utf-8")
    return model


@contextmanager
def serving(model: Path, home: Path, flags: list[str], log: Path) -> Iterator[Server]:
    """Serve `model` with the tenants of `home` until the block ends, however it ends."""
    port = free_port()
    command = [*COMMAND, "serve", str(model), "--served-model-name", MODEL, "--host", "127.0.0.1",
               "--port", str(port), *flags]
    began_s = time.perf_counter()
    with log.open("wb") as sink:
        # a session of its own: an interrupt from the keyboard ends this program, which then ends the server in order
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=_environment(home),
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process, log)
        yield Server(url, home, process, time.perf_counter() - began_s)
    finally:
        _end(process)


def family(pid: int) -> list[psutil.Process]:
    """The processes of a server, those included that outlived the one that started them."""
    members = []
    for member in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(member.pid) == pid and member.status() != psutil.STATUS_ZOMBIE:
                members.append(member)
    return members


def _kind(member: psutil.Process, pid: int) -> str:
    if member.pid == pid:
        return "server"
    title = " ".join(member.cmdline()) + member.name()
    return "engine" if "EngineCore" in title else "worker"


def _environment(home: Path) -> dict[str, str]:
    return os.environ | {"GUARD_HOME": str(home), "GUARD_DATABASE_URL": "", "VLLM_CPU_KVCACHE_SPACE": "1"}


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise SystemExit(f"the server did not become ready, see {log}:\n{log.read_text(errors='replace')[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    members = family(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    members += family(process.pid)
    for member in members:
        with suppress(psutil.Error):
            member.kill()
    process.wait()
