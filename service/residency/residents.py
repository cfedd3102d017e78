"""Keeps the interventions of one kind resident in the engine: a request waits until all of its are, and never runs
without.

The engine has a fixed number of slots, and memory for so much content. A request takes references to all that it needs
of this kind at once or to nothing, so that two requests cannot wait for each other. What nobody refers to keeps its
slot until another one needs it; the least recently used leaves first. Requests that need room while everything is
referred to wait in the order of their arrival. Those whose interventions are all resident may pass them, but only while
the first has not waited long: then references run out and the first gets its room.

An intervention is staged (every rank reads it in the background), polled, and committed between two steps. One load of
each runs at a time, loads of different ones overlap. What fails leaves the others and their requests as they are.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from guard.errors import GuardError, ResidencyError
from guard.metrics import Metrics
from guard.service.residency.engine_loads import EngineLoads

# share of the time-out after which nobody passes the first waiting request any more
PATIENCE = 0.2

log = structlog.get_logger("guard.residents")


@dataclass(frozen=True, slots=True)
class Capacity:
    """Slots for interventions of a kind in the engine, and bytes that their content may take there (None: no limit)."""

    slots: int
    content_bytes: int | None = None


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request in the queue; `admitted` gets the loads of its interventions when it has its references."""

    digests: tuple[str, ...]
    admitted: asyncio.Future[tuple[asyncio.Task[None], ...]]
    since_s: float = field(default_factory=time.monotonic)


class Residents:
    """The interventions of one kind. `size_of` gives the bytes of one that is about to be loaded, `on_failure` hears of
    one that could not be, with a reason that holds no content."""

    def __init__(
        self, loads: EngineLoads, capacity: Capacity, timeout_s: float, metrics: Metrics,
        size_of: Callable[[str], int] = lambda digest: 0,
        on_failure: Callable[[str, str], None] = lambda digest, reason: None,
    ) -> None:
        self.kind = loads.kind
        self._engine, self._capacity, self._timeout_s, self._metrics = loads, capacity, timeout_s, metrics
        self._size_of, self._on_failure = size_of, on_failure
        # the task of each intervention that has a slot, least recently used first, and its bytes
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._sizes: dict[str, int] = {}
        self._references: Counter[str] = Counter()
        self._queue: deque[_Waiting] = deque()
        self._retired: set[str] = set()
        self._failures: dict[str, str] = {}
        metrics.slots_capacity.labels(self.kind).set(capacity.slots)

    @property
    def resident(self) -> int:
        """Number of interventions that are loaded."""
        return sum(_is_loaded(task) for task in self._loads.values())

    @property
    def failures(self) -> dict[str, str]:
        """Why the last load of an intervention failed, by content hash; a later success takes it out."""
        return dict(self._failures)

    async def acquire(self, digests: Sequence[str]) -> None:
        """Refer to all of `digests` and wait until they are resident. Raises ResidencyError, and then holds nothing."""
        wanted = tuple(dict.fromkeys(digests))
        if not wanted:
            return
        self._check_possible(wanted)
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
                raise ResidencyError(
                    f"{self.kind}: what the plan needs is still being loaded, or all slots are in use"
                ) from error
            raise
        finally:
            self._metrics.residency_wait.labels(self.kind).observe(time.monotonic() - started_s)

    def release(self, digests: Iterable[str]) -> None:
        """A request that referred to `digests` has ended."""
        for digest in dict.fromkeys(digests):
            self._references[digest] -= 1
            if self._references[digest] <= 0:
                del self._references[digest]
                if digest in self._retired:
                    self._retire(digest)
        self._advance()

    def prefetch(self, digests: Iterable[str], *, spare: Iterable[str] = ()) -> list[asyncio.Task[None]]:
        """Load `digests` as far as there is room beside what is referred to or in `spare`.

        Returns the loads, which never raise.
        """
        wanted = tuple(dict.fromkeys(digests))
        kept = frozenset(wanted).union(spare)
        loads = []
        for digest in wanted:
            if not self._possible((digest,)):
                self._failures[digest] = "the engine has no room for it"
            elif digest not in self._loads and not self._queue:
                victims = self._victims((digest,), kept)
                if victims is not None:
                    loads.append(self._replace(victims, digest))
        self._report()
        return [asyncio.create_task(_quietly(load)) for load in loads]

    def serve_only(self, needed: Callable[[str], bool]) -> None:
        """Unload what is not `needed` any more, now or with its last reference, and forget how its load failed."""
        for digest in list(self._loads):
            if not needed(digest):
                self._retire(digest)
        self._retired = {digest for digest in self._retired if not needed(digest)}
        self._failures = {digest: reason for digest, reason in self._failures.items() if needed(digest)}
        self._advance()

    def _check_possible(self, wanted: tuple[str, ...]) -> None:
        if self._possible(wanted):
            return
        if len(wanted) > self._capacity.slots:
            raise ResidencyError(f"{self.kind}: the plan needs more than the engine's {self._capacity.slots} slots")
        raise ResidencyError(f"{self.kind}: what the plan needs is larger than the engine's memory for it")

    def _possible(self, wanted: tuple[str, ...]) -> bool:
        limit = self._capacity.content_bytes
        fits = limit is None or sum(self._sizes.get(one, self._size_of(one)) for one in wanted) <= limit
        return len(wanted) <= self._capacity.slots and fits

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
        self._metrics.residency_waiting.labels(self.kind).set(len(self._queue))

    def _try_admit(self, waiting: _Waiting) -> bool:
        missing = tuple(digest for digest in waiting.digests if digest not in self._loads)
        victims = self._victims(missing, frozenset(waiting.digests))
        if victims is None:
            return False
        for digest in victims:
            self._evict(digest)
        for digest in missing:
            self._load(digest)
        self._admit(waiting)
        return True

    def _admit(self, waiting: _Waiting) -> None:
        for digest in waiting.digests:
            self._references[digest] += 1
            self._retired.discard(digest)
            self._loads[digest] = self._loads.pop(digest)  # now the most recently used
        waiting.admitted.set_result(tuple(self._loads[digest] for digest in waiting.digests))

    def _victims(self, missing: tuple[str, ...], keep: frozenset[str]) -> list[str] | None:
        """Who must leave so that `missing` have room, least recently used first; None when that is not enough.

        One that is being loaded has to arrive before it can leave.
        """
        limit = self._capacity.content_bytes
        slots = len(self._loads) + len(missing) - self._capacity.slots
        excess = 0 if limit is None else sum(self._sizes.values()) + sum(map(self._size_of, missing)) - limit
        victims: list[str] = []
        for digest, task in self._loads.items():
            if slots <= len(victims) and excess <= 0:
                break
            if digest not in keep and not self._references[digest] and task.done():
                victims.append(digest)
                excess -= self._sizes[digest]
        return victims if slots <= len(victims) and excess <= 0 else None

    def _replace(self, victims: Iterable[str], digest: str) -> asyncio.Task[None]:
        for victim in victims:
            self._evict(victim)
        return self._load(digest)

    def _evict(self, digest: str) -> None:
        self._metrics.evictions.labels(self.kind).inc()
        self._unload(digest)

    def _retire(self, digest: str) -> None:
        """Unload an intervention that no tenant has any more, unless a request refers to it or it is being loaded."""
        if digest in self._loads and not self._references[digest] and self._loads[digest].done():
            self._retired.discard(digest)
            self._unload(digest)
        elif digest in self._loads:
            self._retired.add(digest)

    def _unload(self, digest: str) -> None:
        del self._loads[digest], self._sizes[digest]
        self._engine.unload(digest)
        self._report()

    def _load(self, digest: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._loading(digest, self._engine.load(digest)))
        # whoever waits for the load gets its error through a shield; without anybody it is logged, and that is all
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._loads[digest], self._sizes[digest] = task, self._size_of(digest)
        return task

    async def _loading(self, digest: str, load: Awaitable[None]) -> None:
        try:
            await load
        except Exception as error:  # an engine call can fail in any way; without it nothing may run
            self._fail(digest, error)
            raise ResidencyError(f"{self.kind}: what the plan needs could not be loaded into the engine") from error
        self._metrics.loads.labels(self.kind, "success").inc()
        self._failures.pop(digest, None)
        # once this task is done it counts as resident, and may leave again when nobody waits for it any more
        asyncio.get_running_loop().call_soon(self._arrived, digest)

    def _arrived(self, digest: str) -> None:
        if digest in self._retired:
            self._retire(digest)
        self._report()
        self._advance()

    def _fail(self, digest: str, error: Exception) -> None:
        reason = str(error) if isinstance(error, GuardError) else type(error).__name__
        self._metrics.loads.labels(self.kind, "failure").inc()
        self._failures[digest] = reason
        # the hash and the kind of error only: messages of the engine may hold anything
        log.error("not_loaded", kind=self.kind, digest=digest[:16], error=reason)
        self._on_failure(digest, reason)
        # some ranks may have it
        self._unload(digest)
        self._advance()

    def _report(self) -> None:
        self._metrics.slots_in_use.labels(self.kind).set(self.resident)


def _is_loaded(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def _quietly(load: asyncio.Task[None]) -> None:
    await asyncio.wait([load])
    if not load.cancelled():
        load.exception()
