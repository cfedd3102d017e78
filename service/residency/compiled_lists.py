"""Forget-lists compiled for the served model: made when a tenant needs one, kept in memory and on disk.

A list is compiled once per version, in a thread; small lists never wait behind a large one. Memory is bounded: the
least recently used lists leave first, and come back from their file. A list that cannot be compiled closes its own
tenant only, and is tried again after a pause that doubles.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from guard.errors import GuardError, ResidencyError
from guard.policy import Tenant
from guard.service.residency.list_files import CompiledList, ListFiles

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
# a list with more targets is compiled beside the others
LARGE_LIST = 1000

log = structlog.get_logger("guard.lists")
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    pause_s: float
    again_s: float


@dataclass(slots=True)
class _Entry:
    """One version of a tenant's list. `digest` stays when `compiled` has left memory; both empty: nothing forbidden."""

    tenant_index: int
    build: asyncio.Task[CompiledList | None] | None = None
    done: bool = False
    compiled: CompiledList | None = None
    digest: str = ""
    failure: _Failure | None = None


class CompiledLists:
    """The compiled lists of one server; call from one event loop. `now_s` is a monotonic clock."""

    def __init__(
        self, files: ListFiles, memory_bytes: int, timeout_s: float, now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._memory_bytes, self._timeout_s, self._now_s = files, memory_bytes, timeout_s, now_s
        self._small = ThreadPoolExecutor(1, "guard-lists")
        self._large = ThreadPoolExecutor(1, "guard-large-lists")
        # least recently used first
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._bytes = 0
        # file and bytes of every compiled list, by content hash
        self._known: dict[str, tuple[Path, int]] = {}

    async def of(self, tenant: Tenant) -> CompiledList | None:
        """The tenant's compiled list; None when it forbids no string. Raises ResidencyError with the reason."""
        key = _key(tenant)
        entry = self._entries.setdefault(key, _Entry(tenant.index))
        self._entries.move_to_end(key)
        if entry.done:
            return entry.compiled
        if entry.build is None:
            failure = entry.failure
            if failure is not None and self._now_s() < failure.again_s:
                raise ResidencyError(f"the list cannot be used: {failure.reason}")
            entry.build = asyncio.create_task(self._build(entry, tenant))
            # whoever waits gets its error through a shield
            entry.build.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(entry.build), self._timeout_s)
        except TimeoutError as error:
            raise ResidencyError("the list is still being compiled") from error

    def path_of(self, digest: str) -> Path:
        """The file of a compiled list. Raises ResidencyError when it is not known."""
        if digest not in self._known:
            raise ResidencyError("the list was not compiled by this server")
        return self._known[digest][0]

    def size_of(self, digest: str) -> int:
        """Bytes that a compiled list takes in a process; 0 when it is not known."""
        return self._known[digest][1] if digest in self._known else 0

    def needed(self, digest: str) -> bool:
        """Whether a tenant that is served now has the list with this content hash."""
        return digest in self._known

    def tenants_seen(self) -> set[str]:
        """Names of the tenants whose list was asked for since the start."""
        return {name for name, _ in self._entries}

    @property
    def failures(self) -> dict[int, str]:
        """Why a tenant's list cannot be used, by tenant index."""
        return {
            entry.tenant_index: entry.failure.reason for entry in self._entries.values() if entry.failure is not None
        }

    def serve_only(self, tenants: Mapping[str, Tenant]) -> None:
        """Forget the lists that none of `tenants` (by name) has. Running requests keep what they hold."""
        for key in [known for known in self._entries if not _is_version(tenants.get(known[0]), known[1])]:
            self._unload(self._entries.pop(key))
        left = {entry.digest for entry in self._entries.values()}
        self._known = {digest: known for digest, known in self._known.items() if digest in left}

    def discard(self, digest: str, reason: str) -> None:
        """The engine could not load this list: compile it anew when it is needed next, after a pause."""
        for entry in self._entries.values():
            if entry.digest == digest:
                self._unload(entry)
                self._fail(entry, reason)
        if digest in self._known:
            self._known[digest][0].unlink(missing_ok=True)

    async def _build(self, entry: _Entry, tenant: Tenant) -> CompiledList | None:
        executor = self._large if len(tenant.targets) > LARGE_LIST else self._small
        try:
            compiled = await asyncio.get_running_loop().run_in_executor(executor, self._files.open, tenant)
        except Exception as error:  # whatever it was: this tenant alone is closed, and the next try may succeed
            # texts of other errors may hold a part of the list
            self._fail(entry, str(error) if isinstance(error, GuardError) else type(error).__name__)
            raise ResidencyError("the list could not be compiled") from error
        finally:
            entry.build = None
        entry.failure = None
        # a version that went out of service meanwhile is good for those who wait for it, and not kept
        if self._entries.get(_key(tenant)) is entry:
            self._keep(entry, compiled)
        return compiled

    def _keep(self, entry: _Entry, compiled: CompiledList | None) -> None:
        entry.done, entry.compiled = True, compiled
        if compiled is None:
            return
        entry.digest = compiled.digest
        self._known[compiled.digest] = compiled.path, compiled.size_bytes
        self._bytes += compiled.size_bytes
        for other in self._entries.values():
            if self._bytes <= self._memory_bytes:
                break
            if other is not entry:
                self._unload(other)

    def _unload(self, entry: _Entry) -> None:
        if entry.compiled is not None:
            self._bytes -= entry.compiled.size_bytes
            entry.compiled, entry.done = None, False

    def _fail(self, entry: _Entry, reason: str) -> None:
        before = entry.failure
        pause_s = FIRST_PAUSE_S if before is None else min(2 * before.pause_s, LONGEST_PAUSE_S)
        entry.failure = _Failure(reason, pause_s, self._now_s() + pause_s)
        log.error("list_not_ready", tenant=entry.tenant_index, error=reason, next_try_s=pause_s)


def needs_list(tenant: Tenant) -> bool:
    """Whether answers to a tenant are ever masked or compared with strings."""
    policy = tenant.policy
    return tenant.listed and policy.action != "monitor" and (policy.constraint.enabled or policy.output.enabled)


def _key(tenant: Tenant) -> Key:
    return tenant.name, tenant.list_version


def _is_version(tenant: Tenant | None, list_version: str) -> bool:
    return tenant is not None and tenant.listed and tenant.list_version == list_version
