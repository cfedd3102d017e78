"""No process of the server outlives it, whatever it was doing and however it was ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from guard.engine import lifetime
from guard.engine.lifetime import TiedProcess
from guard.errors import EngineMismatchError
from tests.conftest import COMMAND, ROOT, free_port, guard_environment, tail

GONE_S = 15.0
START_S = 240.0
WORKER_TITLE = "VLLM::Worker"

PARENT = """
import multiprocessing, os, sys, time
from guard.engine.lifetime import TiedProcess
if __name__ == "__main__":
    entry = ("tests.engine.idle_process", "Idle", "wait")
    child = multiprocessing.get_context(sys.argv[1]).Process(target=TiedProcess(entry, None), args=(600.0,))
    child.start()
    # in one piece: the child writes to the same pipe
    os.write(1, f"{child.pid}\\n".encode())
    time.sleep(600.0)
"""


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end soon; one that nobody has waited for yet counts as ended."""
    deadline_s = time.monotonic() + GONE_S
    while time.monotonic() < deadline_s:
        if not any(alive(one) for one in processes):
            return True
        time.sleep(0.1)
    return False


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_process_ends_with_a_killed_parent(tmp_path: Path, method: str) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT, encoding="utf-8")
    parent = subprocess.Popen(
        [sys.executable, str(program), method], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
    )
    assert parent.stdout is not None
    # either may be the first to say so
    said = sorted(parent.stdout.readline().strip() for _ in range(2))
    child = psutil.Process(int(said[0]))
    try:
        assert said[1] == "running"
        assert alive(child)
        parent.kill()
        parent.wait(timeout=10)
        assert gone([child])
    finally:
        parent.kill()
        if alive(child):
            child.kill()


def test_a_process_whose_parent_has_ended_before_it_looks_ends_at_once() -> None:
    program = "import sys; from guard.engine.lifetime import end_with_parent; end_with_parent(1); print('still here')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_another_vllm_without_these_entries_is_named() -> None:
    with pytest.raises(EngineMismatchError, match="Idle.serve"):
        lifetime.tie(("tests.engine.idle_process", "Idle", "serve"), None)


def test_an_entry_is_tied_once_and_keeps_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.engine.idle_process import Idle

    stock = Idle.__dict__["wait"]
    monkeypatch.setattr(Idle, "wait", stock)
    entry = ("tests.engine.idle_process", "Idle", "wait")
    lifetime.tie(entry, None)
    lifetime.tie(entry, None)
    tied = Idle.__dict__["wait"]
    assert isinstance(tied, TiedProcess)
    assert tied._stock is stock.__func__


def test_what_is_tied_exists_in_this_vllm() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    for entry in (lifetime.ENGINE, lifetime.WORKER):
        assert callable(lifetime._stock(entry))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], Path]]]:
    """A function that starts `guard serve demo` with flags and returns its process and log."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    started: list[subprocess.Popen[bytes]] = []

    def serve(*flags: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = tmp_path / "server.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "serve", "demo", "--port", str(free_port()), *flags],
                env={**guard_environment(tmp_path / "home"), "GUARD_ENCODER": "none"}, cwd=ROOT, stdout=stream,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process, log

    yield serve
    for process in started:
        process.kill()
        process.wait(timeout=30)


def wait_for(process: subprocess.Popen[bytes], log: Path, point: str) -> list[Any]:
    """Wait until the server is at `point`; all processes below it then."""
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        below: list[Any] = psutil.Process(process.pid).children(recursive=True)
        if _reached(point, below, log):
            return below
        time.sleep(0.05)
    pytest.fail(f"the server did not come to {point!r} (exit code {process.poll()}):\n{tail(log)}")


def _reached(point: str, below: list[psutil.Process], log: Path) -> bool:
    if point == "engine process":  # still imports vLLM
        return any("spawn_main" in " ".join(_command(one)) for one in below)
    if point == "loading":
        return any(WORKER_TITLE in " ".join(_command(one)) for one in below)
    return '"event": "serving"' in log.read_text(encoding="utf-8", errors="replace")


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@pytest.mark.vllm
@pytest.mark.slow
def test_sigterm_during_the_start_ends_everything_with_one_line(
    start: Callable[..., tuple[subprocess.Popen[bytes], Path]]
) -> None:
    process, log = start()
    below = wait_for(process, log, "loading")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert gone(below)
    text = log.read_text(encoding="utf-8")
    assert '"signal": "SIGTERM", "event": "stopped_during_start"' in text.splitlines()[-1]
    assert "Traceback" not in text


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("point", ["engine process", "serving"])
def test_a_killed_server_leaves_no_process_behind(
    start: Callable[..., tuple[subprocess.Popen[bytes], Path]], point: str
) -> None:
    process, log = start()
    below = wait_for(process, log, point)
    process.kill()
    process.wait(timeout=30)
    assert gone(below), [one for one in below if alive(one)]
    if point == "serving":
        text = log.read_text(encoding="utf-8")
        assert "ERROR" not in text and "Traceback" not in text
