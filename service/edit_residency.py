"""Keeps the packs of plans resident in the engine: a request waits until all of its packs are, and never runs without.

The engine has a fixed number of slots. A request takes references to all of its packs at once or to none, so that two
requests cannot wait for each other. A pack that nobody refers to keeps its slot until another one needs it; the least
recently used leaves first. Requests that need a slot while every resident pack is referred to wait in the order of
their arrival. Those whose packs are all resident may pass them, but only while the first has not waited long: then
references run out and the first gets its slot.

A pack is staged (every rank reads it in the background), polled, and committed between two steps. One load of a pack
runs at a time, loads of different packs overlap. What fails leaves the other packs and their requests as they are.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from guard.errors import GuardError, ResidencyError
from guard.metrics import Metrics
from guard.service.store.pack_files import pack_path

KIND = "edit"
FIRST_POLL_S, LONGEST_POLL_S = 0.002, 0.1
LONGEST_LOAD_S = 300.0
# a worker learns with its next step that a request has ended, and keeps the slots of its packs until then
COMMIT_PAUSES_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
# share of the time-out after which nobody passes the first waiting request any more
PATIENCE = 0.2
EngineCall = Callable[[str, tuple[Any, ...]], Awaitable[Any]]

log = structlog.get_logger("guard.edit_residency")


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request in the queue; `admitted` gets the loads of its packs when it has its references."""

    digests: tuple[str, ...]
    admitted: asyncio.Future[tuple[asyncio.Task[None], ...]]
    since_s: float = field(default_factory=time.monotonic)


class EditResidency:
    """`call` runs a method on every worker and raises when one of them fails; `capacity` is the number of slots."""

    def __init__(self, call: EngineCall, home: Path, capacity: int, timeout_s: float, metrics: Metrics) -> None:
        self._call, self._home, self._capacity = call, home, capacity
        self._timeout_s, self._metrics = timeout_s, metrics
        # the task of each pack that has a slot, least recently used first
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._references: Counter[str] = Counter()
        self._queue: deque[_Waiting] = deque()
        self._wanted: frozenset[str] = frozenset()
        self._failed: set[str] = set()
        metrics.slots_capacity.labels(KIND).set(capacity)

    @property
    def resident(self) -> int:
        """Number of packs that are loaded."""
        return sum(_is_loaded(task) for task in self._loads.values())

    @property
    def failed(self) -> int:
        """Number of packs whose last load failed."""
        return len(self._failed)

    async def acquire(self, digests: Sequence[str]) -> None:
        """Refer to all of `digests` and wait until they are resident. Raises ResidencyError, and then holds nothing."""
        wanted = tuple(dict.fromkeys(digests))
        if not wanted:
            return
        if len(wanted) > self._capacity:
            raise ResidencyError("the plan needs more packs than the engine has slots")
        started_s = time.monotonic()
        waiting = _Waiting(wanted, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(self._timeout_s):
                self._enqueue(waiting)
                # shielded: other requests may wait for the same load
                await asyncio.gather(*map(asyncio.shield, await waiting.admitted))
        except BaseException as error:
            self._withdraw(waiting)
            if isinstance(error, TimeoutError):
                raise ResidencyError("the packs of the plan are still being loaded, or all slots are in use") from error
            raise
        finally:
            self._metrics.residency_wait.observe(time.monotonic() - started_s)

    def release(self, digests: Iterable[str]) -> None:
        """A request that referred to `digests` has ended."""
        for digest in dict.fromkeys(digests):
            self._references[digest] -= 1
            if self._references[digest] <= 0:
                del self._references[digest]
        self._advance()

    def prefetch(self, digests: Iterable[str]) -> list[asyncio.Task[None]]:
        """Name the packs of the tenants that are served now and load them as far as there is room.

        Packs that are referred to or wanted themselves stay. Returns the loads, which never raise.
        """
        wanted = tuple(dict.fromkeys(digests))
        self._wanted = frozenset(wanted)
        # an engine without slots cannot load anything
        self._failed = self._failed & self._wanted if self._capacity else set(wanted)
        loads = []
        for digest in wanted:
            if digest not in self._loads and not self._queue and self._make_room((), spare=self._wanted):
                loads.append(self._load_into_slot(digest))
        self._report()
        return [asyncio.create_task(_quietly(load)) for load in loads]

    def _enqueue(self, waiting: _Waiting) -> None:
        resident = all(digest in self._loads for digest in waiting.digests)
        if resident and (not self._queue or time.monotonic() - self._queue[0].since_s < PATIENCE * self._timeout_s):
            self._admit(waiting)
            return
        self._queue.append(waiting)
        self._advance()

    def _withdraw(self, waiting: _Waiting) -> None:
        """Take back whatever a request that gave up has: its place in the queue, or its references."""
        if waiting.admitted.done() and not waiting.admitted.cancelled():
            self.release(waiting.digests)
            return
        waiting.admitted.cancel()
        if waiting in self._queue:
            self._queue.remove(waiting)
        self._advance()

    def _advance(self) -> None:
        """Admit from the head of the queue as long as there is room."""
        # one that was cancelled may not have heard of it yet
        while self._queue and (self._queue[0].admitted.cancelled() or self._try_admit(self._queue[0])):
            self._queue.popleft()
        self._metrics.residency_waiting.set(len(self._queue))

    def _try_admit(self, waiting: _Waiting) -> bool:
        missing = [digest for digest in waiting.digests if digest not in self._loads]
        free = self._capacity - len(self._loads)
        if len(missing) > free + len(self._evictable(waiting.digests)):
            return False
        for digest in missing:
            self._make_room(waiting.digests)
            self._load_into_slot(digest)
        self._admit(waiting)
        return True

    def _admit(self, waiting: _Waiting) -> None:
        for digest in waiting.digests:
            self._references[digest] += 1
            self._loads[digest] = self._loads.pop(digest)  # now the most recently used
        waiting.admitted.set_result(tuple(self._loads[digest] for digest in waiting.digests))

    def _evictable(self, keep: Iterable[str], spare: frozenset[str] = frozenset()) -> list[str]:
        """Packs that can leave, least recently used first. One that is being loaded has to arrive before."""
        kept = spare.union(keep)
        return [
            digest for digest, task in self._loads.items()
            if digest not in kept and not self._references[digest] and task.done()
        ]

    def _make_room(self, keep: Iterable[str], spare: frozenset[str] = frozenset()) -> bool:
        """Whether a slot is free, after an eviction where none was."""
        if len(self._loads) < self._capacity:
            return True
        for digest in self._evictable(keep, spare)[:1]:
            del self._loads[digest]
            self._metrics.pack_evictions.inc()
            self._leaving[digest] = asyncio.create_task(self._unload(digest))
            self._report()
            return True
        return False

    def _load_into_slot(self, digest: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._load(digest, self._leaving.get(digest), tuple(self._leaving.values())))
        # whoever waits for the load gets its error through a shield; without anybody it is logged, and that is all
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._loads[digest] = task
        return task

    async def _load(
        self, digest: str, before: asyncio.Task[None] | None, leaving: tuple[asyncio.Task[None], ...]
    ) -> None:
        try:
            async with asyncio.timeout(LONGEST_LOAD_S):
                if before is not None:
                    await asyncio.wait([before])
                await self._call("guard_stage", (KIND, str(pack_path(self._home, digest)), digest))
                await self._staged(digest)
                if leaving:
                    # the slot is free in the engine only when those who leave have left
                    await asyncio.wait(leaving)
                await self._commit(digest, after_others=bool(leaving))
        except Exception as error:  # an engine call can fail in any way; without the pack nothing may run
            self._fail(digest, error)
            raise ResidencyError("a pack could not be loaded into the engine") from error
        self._metrics.pack_loads.labels("success").inc()
        self._failed.discard(digest)
        # once this task is done it counts as resident, and may leave again when nobody waits for it any more
        asyncio.get_running_loop().call_soon(self._arrived)

    def _arrived(self) -> None:
        self._report()
        self._advance()

    def _fail(self, digest: str, error: Exception) -> None:
        self._metrics.pack_loads.labels("failure").inc()
        self._failed.add(digest)
        # the hash and the kind of error only: messages of the engine may hold anything
        log.error("pack_not_loaded", pack=digest[:16], error=_reason(error))
        del self._loads[digest]
        # some ranks may have it
        self._leaving[digest] = asyncio.create_task(self._unload(digest))
        self._advance()

    async def _staged(self, digest: str) -> None:
        """Wait until every rank has read the pack."""
        pause_s = FIRST_POLL_S
        while "loading" in await self._call("guard_staged", (KIND, digest)):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_POLL_S)

    async def _commit(self, digest: str, *, after_others: bool) -> None:
        for pause_s in (*COMMIT_PAUSES_S, None) if after_others else (None,):
            try:
                await self._call("guard_commit", (KIND, digest))
                return
            except Exception:  # an engine call can fail in any way; the last try says which
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

    async def _unload(self, digest: str) -> None:
        try:
            await self._call("guard_release", (KIND, digest))
        except Exception as error:  # an engine call can fail in any way; the next load finds the slot taken and says so
            log.error("pack_not_released", pack=digest[:16], error=_reason(error))
        if self._leaving.get(digest) is asyncio.current_task():
            del self._leaving[digest]

    def _report(self) -> None:
        self._metrics.slots_in_use.labels(KIND).set(self.resident)


def _is_loaded(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, GuardError) else type(error).__name__


async def _quietly(load: asyncio.Task[None]) -> None:
    await asyncio.wait([load])
    load.exception()
