"""Background work of all lists in one thread, a little at a time.

Work is a generator that yields between pieces of some milliseconds and returns its result. Work that a request waits
for goes before the rest; work that has taken long gives way to both, so that a list of 10^5 strings delays nobody, but
has every fourth turn, so that it ends. Turns that nobody waits for give way to requests: the thread rests between them,
and begins one where no request runs, or after some patience.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from guard.errors import DetectorError

Result = TypeVar("Result")
Work = Generator[None, None, Result]
# time of one turn that a request waits for (others end with their first piece), and after which work counts as long
_TURN_S = 0.02
_LONG_S = 0.5
_TURNS_PER_LONG = 4
# rest after a turn that nobody waits for, in units of the turn's time; long work would take too long with the first
_REST, _REST_OF_LONG = 4.0, 2.0
# longest wait for a moment without requests before a turn, and between two looks
_PATIENCE_S, _LOOK_S = 0.2, 0.004
_JOIN_S = 10.0


@dataclass(eq=False, slots=True)
class Job(Generic[Result]):
    """Work in the queue. Cancel `future` to drop it; what runs stops at its next pause."""

    work: Work[Result]
    urgent: bool
    future: Future[Result] = field(default_factory=Future)
    spent_s: float = 0.0


class BuildQueue:
    """Starts its thread on first use; `close` ends it. `busy` says, in that thread, whether a request runs now."""

    def __init__(self, busy: Callable[[], bool] = lambda: False) -> None:
        self.busy = busy
        self._rest_s = 0.0
        self._condition = threading.Condition()
        self._urgent: deque[Job[Any]] = deque()
        self._ordinary: deque[Job[Any]] = deque()
        self._long: deque[Job[Any]] = deque()
        self._thread: threading.Thread | None = None
        self._turns = 0
        self._closed = False

    def submit(self, work: Work[Result], *, urgent: bool = False) -> Job[Result]:
        """Queue `work`. Raises DetectorError when the queue is closed."""
        job = Job(work, urgent)
        with self._condition:
            if self._closed:
                raise DetectorError("the detector is closed")
            self._put(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="guard-build", daemon=True)
                self._thread.start()
        return job

    def hurry(self, job: Job[Any]) -> None:
        """A request waits for `job` now."""
        with self._condition:
            job.urgent = True
            if job in self._ordinary:
                self._ordinary.remove(job)
                self._put(job)

    def close(self) -> None:
        """Drop what waits and end the thread, which stops at its next pause."""
        with self._condition:
            self._closed = True
            for jobs in (self._urgent, self._ordinary, self._long):
                for job in jobs:
                    job.future.cancel()
                jobs.clear()
            self._condition.notify_all()
        if self._thread is not None:
            # a thread that still computes would end the process with an error
            self._thread.join(_JOIN_S)

    def _put(self, job: Job[Any], *, first: bool = False) -> None:
        queue = self._urgent if job.urgent else self._ordinary
        if job.spent_s > _LONG_S:
            self._long.append(job)
        elif first:
            queue.appendleft(job)
        else:
            queue.append(job)
        self._condition.notify_all()

    def _next(self) -> Job[Any] | None:
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._urgent or self._ordinary or self._long)
            if not self._urgent:
                self._give_way()
            if self._closed:
                return None
            self._turns += 1
            order = [self._urgent, self._ordinary, self._long]
            if self._turns % _TURNS_PER_LONG == 0:
                order.insert(0, self._long)
            return next(queue for queue in order if queue).popleft()

    def _give_way(self) -> None:
        """Rest, then wait for a moment without requests; at once when the queue is closed or something urgent comes."""
        if self._condition.wait_for(lambda: self._closed or self._urgent, self._rest_s):
            return
        until = time.monotonic() + _PATIENCE_S
        while self.busy() and time.monotonic() < until:
            if self._condition.wait_for(lambda: self._closed or self._urgent, _LOOK_S):
                return

    def _run(self) -> None:
        while (job := self._next()) is not None:
            start = time.monotonic()
            over = _take_turn(job)
            rest = _REST if job.spent_s <= _LONG_S else _REST_OF_LONG
            self._rest_s = 0.0 if job.urgent else rest * (time.monotonic() - start)
            if over:
                continue
            with self._condition:
                if self._closed:
                    job.future.cancel()
                    return
                # as long as nothing more urgent came, what was begun goes on
                self._put(job, first=True)


def _take_turn(job: Job[Any]) -> bool:
    """Work for one turn; whether the job is over."""
    if job.future.cancelled():
        job.work.close()
        return True
    start = time.monotonic()
    try:
        while True:
            next(job.work)
            took = time.monotonic() - start
            if took >= _TURN_S or not job.urgent:
                job.spent_s += took
                return False
    except StopIteration as stop:
        if job.future.set_running_or_notify_cancel():
            job.future.set_result(stop.value)
    # whatever goes wrong must reach those that wait, or they hang
    except Exception as error:  # noqa: BLE001
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)
    return True


def finish(work: Work[Result]) -> Result:
    """Do all of `work` at once."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: Result = stop.value
            return result
