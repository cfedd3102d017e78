"""The calls that bring one intervention into every rank of the engine, and out again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from guard.errors import GuardError

FIRST_POLL_S, LONGEST_POLL_S = 0.002, 0.1
LONGEST_LOAD_S = 300.0
# a worker learns with its next step that a request has ended, and keeps the slots of its interventions until then
COMMIT_PAUSES_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
EngineCall = Callable[[str, tuple[Any, ...]], Awaitable[Any]]

log = structlog.get_logger("guard.engine_loads")


class EngineLoads:
    """Loads and unloads interventions of one `kind`; `call` runs a method on every worker and raises when one fails.

    `path_of` gives the file of a content hash, which every rank reads.
    """

    def __init__(self, kind: str, call: EngineCall, path_of: Callable[[str], Path]) -> None:
        self.kind = kind
        self._call, self._path_of = call, path_of
        self._leaving: dict[str, asyncio.Task[None]] = {}

    def load(self, digest: str) -> Coroutine[Any, Any, None]:
        """Stage, wait until every rank has read it, and commit. What is leaving now makes room first."""
        return self._load(digest, self._leaving.get(digest), tuple(self._leaving.values()))

    def unload(self, digest: str) -> None:
        """Begin to take an intervention out of the engine; a load that begins later waits for that."""
        self._leaving[digest] = asyncio.create_task(self._unload(digest, self._leaving.get(digest)))

    async def _load(
        self, digest: str, before: asyncio.Task[None] | None, leaving: tuple[asyncio.Task[None], ...]
    ) -> None:
        async with asyncio.timeout(LONGEST_LOAD_S):
            if before is not None:
                await asyncio.wait([before])
            await self._call("guard_stage", (self.kind, str(self._path_of(digest)), digest))
            await self._staged(digest)
            if leaving:
                # the slot is free in the engine only when those who leave have left
                await asyncio.wait(leaving)
            await self._commit(digest, after_others=bool(leaving))

    async def _staged(self, digest: str) -> None:
        pause_s = FIRST_POLL_S
        while "loading" in await self._call("guard_staged", (self.kind, digest)):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_POLL_S)

    async def _commit(self, digest: str, *, after_others: bool) -> None:
        for pause_s in (*COMMIT_PAUSES_S, None) if after_others else (None,):
            try:
                await self._call("guard_commit", (self.kind, digest))
                return
            except Exception:  # an engine call can fail in any way; the last try says which
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

    async def _unload(self, digest: str, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            await self._call("guard_release", (self.kind, digest))
        except Exception as error:  # an engine call can fail in any way; the next load finds the slot taken and says so
            reason = str(error) if isinstance(error, GuardError) else type(error).__name__
            log.error("not_released", kind=self.kind, digest=digest[:16], error=reason)
        if self._leaving.get(digest) is asyncio.current_task():
            del self._leaving[digest]
