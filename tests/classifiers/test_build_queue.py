"""Background work: urgent work first, long work a little at a time, and nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from guard.classifiers import build_queue
from guard.classifiers.build_queue import BuildQueue, Work, finish
from guard.errors import DetectorError


@pytest.fixture
def queue() -> Iterator[BuildQueue]:
    """A queue that is closed at the end."""
    made = BuildQueue()
    yield made
    made.close()


def steps(name: str, count: int, log: list[str], step_s: float = 0.0) -> Work[str]:
    """Work of `count` pieces that writes its end into `log`."""
    for _ in range(count):
        time.sleep(step_s)
        yield
    log.append(name)
    return name


def held(queue: BuildQueue) -> threading.Event:
    """Keep the thread busy until the event is set, so that what is submitted meanwhile is ordered."""
    go, began = threading.Event(), threading.Event()

    def work() -> Work[None]:
        began.set()
        go.wait(10.0)
        yield

    queue.submit(work(), urgent=True)
    assert began.wait(10.0)
    return go


def test_work_that_a_request_waits_for_goes_before_the_rest(queue: BuildQueue) -> None:
    log: list[str] = []
    go = held(queue)
    jobs = [queue.submit(steps(f"background {n}", 3, log)) for n in range(5)]
    jobs.append(queue.submit(steps("urgent", 3, log), urgent=True))
    queue.hurry(jobs[3])
    go.set()
    assert [job.future.result(10.0) for job in jobs][-1] == "urgent"
    assert log == ["urgent", "background 3", "background 0", "background 1", "background 2", "background 4"]


def test_long_work_delays_nobody_and_still_ends(queue: BuildQueue) -> None:
    log: list[str] = []
    long = queue.submit(steps("long", 60, log, 0.025), urgent=True)
    time.sleep(0.8)
    short = [queue.submit(steps(f"short {n}", 2, log, 0.01)) for n in range(10)]
    for job in short:
        job.future.result(10.0)
    assert "long" not in log
    assert long.future.result(10.0) == "long"


def test_an_error_reaches_the_one_that_waits_and_the_thread_goes_on(queue: BuildQueue) -> None:
    def broken() -> Work[None]:
        yield
        raise ValueError("broken")

    failing = queue.submit(broken())
    with pytest.raises(ValueError, match="broken"):
        failing.future.result(10.0)
    assert queue.submit(steps("next", 1, [])).future.result(10.0) == "next"


def test_cancelled_work_is_dropped(queue: BuildQueue) -> None:
    log: list[str] = []
    go = held(queue)
    dropped, kept = queue.submit(steps("dropped", 1, log)), queue.submit(steps("kept", 1, log))
    dropped.future.cancel()
    go.set()
    kept.future.result(10.0)
    assert log == ["kept"]


def test_closing_cancels_what_waits_and_refuses_more() -> None:
    queue = BuildQueue()
    go = held(queue)
    waiting = queue.submit(steps("waiting", 1, []))
    queue.close()
    go.set()
    assert waiting.future.cancelled()
    with pytest.raises(DetectorError, match="closed"):
        queue.submit(steps("late", 1, []))


def test_work_can_be_finished_at_once() -> None:
    assert finish(steps("whole", 4, [])) == "whole"


def test_background_work_waits_for_a_moment_without_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_queue, "_PATIENCE_S", 30.0)
    running = True
    queue = BuildQueue(lambda: running)
    try:
        patient = queue.submit(steps("patient", 1, []))
        urgent = queue.submit(steps("urgent", 1, []), urgent=True)
        assert urgent.future.result(10.0) == "urgent"
        assert not patient.future.done()
        running = False
        assert patient.future.result(10.0) == "patient"
    finally:
        queue.close()


def test_background_work_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_queue, "_PATIENCE_S", 0.05)
    queue = BuildQueue(lambda: True)
    try:
        assert queue.submit(steps("patient", 2, [])).future.result(10.0) == "patient"
    finally:
        queue.close()


@pytest.mark.parametrize(("urgent", "rested"), [(True, False), (False, True)])
def test_only_turns_that_nobody_waits_for_are_followed_by_a_rest(
    urgent: bool, rested: bool, queue: BuildQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_queue, "_REST", 60.0)
    began_s = time.monotonic()
    jobs = [queue.submit(steps(f"{n}", 1, [], 0.05), urgent=urgent) for n in range(2)]
    for job in jobs:
        job.future.result(20.0)
    assert (time.monotonic() - began_s >= 60.0 * 0.05) == rested
