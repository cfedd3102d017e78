"""One thing that is built in the background for a tenant, and built again with growing pauses when that fails.

What went wrong is kept and logged without any content: the text of an error that is not the guard's own may hold a
string of the list, so only its type is named.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import structlog

from guard.classifiers.build_queue import BuildQueue, Job, Work
from guard.errors import GuardError

Result = TypeVar("Result")
Part = Literal["detector", "answers"]
_MOST_DOUBLINGS = 30

log = structlog.get_logger("guard.detector")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts: `first_s`, doubled after each failure, `most_s` at most."""

    first_s: float = 1.0
    most_s: float = 60.0

    def pause_s(self, attempts: int) -> float:
        """The pause after so many failed attempts."""
        return float(min(self.most_s, self.first_s * 2.0 ** min(attempts - 1, _MOST_DOUBLINGS)))


@dataclass(slots=True)
class Counters:
    """What happened since the start: verdicts that were late or failed, builds that ended, builds that failed."""

    timeouts: int = 0
    failures: int = 0
    builds: int = 0
    build_failures: int = 0


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all builds of one detector share. `clock` gives seconds and decides when a request may try again."""

    queue: BuildQueue = field(default_factory=BuildQueue)
    counters: Counters = field(default_factory=Counters)
    backoff: Backoff = Backoff()
    clock: Callable[[], float] = time.monotonic


class Build(Generic[Result]):
    """`result` once there is one; `failure` says why the last attempt failed. Call from one event loop."""

    def __init__(self, workshop: Workshop, part: Part, tenant_index: int, make: Callable[[], Work[Result]]) -> None:
        self.result: Result | None = None
        self.failure: str | None = None
        self._workshop, self._part, self._tenant_index = workshop, part, tenant_index
        self._make: Callable[[], Work[Result]] | None = make
        self._job: Job[Result] | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._attempts = 0
        self._retry_at = 0.0
        self._patience_ends: float | None = None

    @property
    def running(self) -> bool:
        """Whether an attempt waits or runs."""
        return self._task is not None

    def start(self, *, urgent: bool = False) -> None:
        """Begin unless it is built, runs already, or failed so lately that the pause is not over."""
        if self._make is None:
            return
        if self._job is not None:
            if urgent and not self._job.urgent:
                self._workshop.queue.hurry(self._job)
            return
        if self.failure is not None and self._workshop.clock() < self._retry_at:
            return
        self._stop_timer()
        self._attempts += 1
        self._patience_ends = None
        self._job = self._workshop.queue.submit(self._make(), urgent=urgent)
        self._task = asyncio.get_running_loop().create_task(self._take(self._job))

    async def wait(self) -> None:
        """Wait until the attempt that runs has ended, well or not."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def wait_briefly(self, most_s: float, patience_s: float) -> None:
        """Wait at most `most_s`, and no longer than `patience_s` after the first such call in this attempt."""
        if self._task is None:
            return
        now = asyncio.get_running_loop().time()
        if self._patience_ends is None:
            self._patience_ends = now + patience_s
        await asyncio.wait({self._task}, timeout=max(0.0, min(most_s, self._patience_ends - now)))

    def drop(self) -> None:
        """Never build it again; an attempt that runs is given up."""
        self._make = None
        self._stop_timer()
        if self._job is not None:
            self._job.future.cancel()
        if self._task is not None:
            self._task.cancel()

    async def _take(self, job: Job[Result]) -> None:
        try:
            self.result = await asyncio.wrap_future(job.future)
        # without its trained parts every verdict of this list is unknown, so nothing passes unseen
        except Exception as error:  # noqa: BLE001
            self._failed(error)
        else:
            if self.failure is not None:
                log.info("detector_built", part=self._part, tenant=self._tenant_index, attempt=self._attempts)
            self.failure, self._make = None, None
        finally:
            self._job = self._task = None
            self._workshop.counters.builds += 1

    def _failed(self, error: Exception) -> None:
        workshop = self._workshop
        workshop.counters.build_failures += 1
        self.failure = reason_of(error)
        pause_s = workshop.backoff.pause_s(self._attempts)
        self._retry_at = workshop.clock() + pause_s
        if self._make is not None:
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._retry)
        log.error(
            "detector_not_built", part=self._part, tenant=self._tenant_index, reason=self.failure,
            attempt=self._attempts, retry_in_s=pause_s,
        )

    def _retry(self) -> None:
        self._timer = None
        self._retry_at = self._workshop.clock()
        self.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def reason_of(error: Exception) -> str:
    """What went wrong, without content: the guard's own messages never hold any, those of others may."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, GuardError) else name
