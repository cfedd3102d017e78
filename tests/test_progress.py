"""Waiting for processes: slow ones are waited for, hung and dead ones are not, and none of a family stays behind."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.progress import GaveUpError, Patience, Probe, Watched

ROOT = Path(__file__).resolve().parents[1]
BUSY = """
import time
while time.process_time() < {seconds}:
    sum(range(1000))
print("computed", flush=True)
time.sleep(600)
"""
# starts a child of its own session, whose own child stays in that; all say who they are
FAMILY = """
import os, subprocess, sys, time
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "child"], start_new_session=True)
elif sys.argv[1] == "child":
    subprocess.Popen([sys.executable, __file__, "grandchild"])
print("started", os.getpid(), flush=True)
time.sleep(600)
"""
# its first process leaves a child behind, as a server does that dies without ending its engine
LEAVES_A_CHILD = """
import os, signal, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import os, time; print('started', os.getpid(), flush=True); time.sleep(600)"])
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print("started", os.getpid(), flush=True)
time.sleep(600)
"""
HANGS = """
import time
print("loading the weights", flush=True)
while True:
    time.sleep(0.2)
"""

Start = Callable[..., Watched]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """A function (script, text substitutions) -> that script as a watched process."""

    def started(script: str, **values: object) -> Watched:
        path = tmp_path / "script.py"
        path.write_text(script.format(**values) if values else script, encoding="utf-8")
        return Watched([sys.executable, str(path)], tmp_path / "log")

    return started


def says(log_file: Path, text: str, times: int = 1) -> Callable[[], Probe]:
    """A look that is content once the log holds `text` so many times."""
    return lambda: Probe(log_file.read_text(encoding="utf-8").count(text) >= times)


def pids(log_file: Path) -> list[int]:
    words = [line.split() for line in log_file.read_text(encoding="utf-8").splitlines()]
    return [int(number) for word, number in words if word == "started"]


def running(numbers: list[int]) -> list[int]:
    """Those of the processes that have not ended."""
    return [
        pid for pid in numbers if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


def test_a_silent_process_that_computes_is_waited_for(start: Start) -> None:
    with start(BUSY, seconds=6) as process:
        process.wait_until(says(process.log_file, "computed"), "busy", Patience(quiet_s=2.0, pause_s=0.1))


def test_a_process_that_only_writes_is_waited_for(start: Start) -> None:
    slow = "import time\nfor step in range(8):\n    print('step', step, flush=True)\n    time.sleep(0.5)\n"
    with start(slow) as process:
        process.wait_until(says(process.log_file, "step 7"), "slow", Patience(2.0, busy_share=1e9, pause_s=0.1))


def test_a_process_whose_report_changes_is_waited_for(start: Start) -> None:
    building = iter(range(12))

    def look() -> Probe:
        left = 11 - next(building)
        return Probe(left == 0, f"detectors building: {left}")

    with start(HANGS) as process:
        process.wait_until(look, "building", Patience(quiet_s=1.0, busy_share=1e9, pause_s=0.3))


def test_a_process_that_hangs_is_given_up_early_with_what_it_was_doing(start: Start) -> None:
    started_s = time.monotonic()
    with start(HANGS) as process, pytest.raises(GaveUpError) as raised:
        # what wakes up five times a second is not busy
        process.wait_until(lambda: Probe(False, '{"engine": "starting"}'), "the server", Patience(3.0, 300.0))
    message = str(raised.value)
    assert time.monotonic() - started_s < 60
    assert message.startswith("the server: no progress for 3 s")
    assert 'last report: {"engine": "starting"}' in message
    assert "loading the weights" in message
    assert f"{process.process.pid} {sys.executable}" in message and "sleeping" in message


def test_a_process_that_is_busy_for_ever_is_given_up_at_the_ceiling(start: Start) -> None:
    with start("while True: pass") as process, pytest.raises(GaveUpError, match="not within 3 s") as raised:
        process.wait_until(lambda: Probe(False), "the server", Patience(quiet_s=2.5, ceiling_s=3.0, pause_s=0.1))
    assert "running" in str(raised.value)


def test_a_process_that_dies_fails_at_once_with_its_log(start: Start) -> None:
    started_s = time.monotonic()
    with start("raise SystemExit('no model there')") as process, pytest.raises(GaveUpError) as raised:
        process.wait_until(lambda: Probe(False), "the server")
    assert time.monotonic() - started_s < 60
    assert "exit code 1" in str(raised.value) and "no model there" in str(raised.value)


def test_a_command_that_ends_gives_its_exit_code(start: Start) -> None:
    with start("raise SystemExit(3)") as process:
        assert process.wait_for_end("the command") == 3


def test_a_whole_family_ends_when_the_wait_is_given_up(start: Start) -> None:
    with start(FAMILY) as process, pytest.raises(GaveUpError):
        process.wait_until(says(process.log_file, "started", 3), "the family")
        assert len(running(pids(process.log_file))) == 3
        process.wait_until(lambda: Probe(False), "never", Patience(quiet_s=0.5, pause_s=0.1))
    assert len(pids(process.log_file)) == 3
    assert running(pids(process.log_file)) == []


def test_a_child_that_outlives_its_parent_is_named_and_ended(start: Start) -> None:
    with start(LEAVES_A_CHILD) as process:
        process.wait_until(says(process.log_file, "started", 2), "the family")
        (left,) = process.stop(grace_s=3.0)
    assert process.process.returncode == 0
    assert "time.sleep(600)" in left
    assert running(pids(process.log_file)) == []


def test_a_child_whose_parent_died_before_is_found(start: Start) -> None:
    with start(LEAVES_A_CHILD) as process:
        process.wait_until(says(process.log_file, "started", 2), "the family")
        process.process.kill()
        process.process.wait()
    assert running(pids(process.log_file)) == []


def test_a_family_that_ends_in_order_leaves_nothing_to_kill(start: Start) -> None:
    with start(HANGS) as process:
        process.wait_until(says(process.log_file, "loading"), "the process")
        assert process.stop(grace_s=60.0) == []
    assert process.process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_session_takes_its_processes_with_it(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "family.py").write_text(FAMILY, encoding="utf-8")
    (tmp_path / "test_waits.py").write_text(
        textwrap.dedent("""
            import sys
            from pathlib import Path
            import pytest
            from tests.progress import Probe, Watched

            @pytest.fixture(scope="session")
            def family():
                folder = Path(__file__).parent
                with Watched([sys.executable, str(folder / "family.py")], folder / "log") as process:
                    process.wait_until(lambda: Probe(False), "never")
                    yield

            def test_never_begins(family): ...
        """), encoding="utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", os.devnull, "--rootdir", str(tmp_path),
               str(tmp_path / "test_waits.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = tmp_path / "log"
    with Watched(command, tmp_path / "session.log", environment=environment) as session:
        session.wait_until(lambda: Probe(log.exists() and len(pids(log)) == 3), "the session starts a family")
        session.process.send_signal(number)
        exit_code = session.wait_for_end("the session ends")
        found = pids(log)
        assert exit_code not in (0, 1), session.log_file.read_text(encoding="utf-8")
        assert running(found) == []
