"""Keeps every tenant's constraint resident in the engine: compile, save, stage, commit, release.

One automaton per forget-list version, compiled in a thread, saved under `GUARD_HOME/automata`, then loaded by every
worker in two steps (stage: read and check the file; commit: take a slot). Requests that need it wait; a list that is
no longer served is released when the last request that uses it has ended.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from guard.classifiers.automaton import Automaton, Vocabulary
from guard.classifiers.normalize import mask_form
from guard.classifiers.phrases import forbidden_patterns
from guard.errors import GuardError, ResidencyError
from guard.policy import Tenant

KIND = "constraint"
EngineCall = Callable[[str, tuple[Any, ...]], Awaitable[Any]]

log = structlog.get_logger("guard.residency")


@dataclass(frozen=True, slots=True)
class TenantConstraint:
    """A compiled forget-list: `echoable` and `explicit` hold indices into the automaton's patterns."""

    automaton: Automaton
    digest: str
    echoable: frozenset[int]
    explicit: tuple[int, ...]
    explicit_patterns: tuple[str, ...]

    def exempt(self, prompt_text: str) -> frozenset[int]:
        """Patterns that the prompt itself contains and that may be repeated."""
        return self.automaton.occurrences(prompt_text) & self.echoable

    def explicit_exempt(self, exempt: frozenset[int]) -> frozenset[int]:
        """`exempt` as indices into `explicit_patterns`."""
        return frozenset(place for place, index in enumerate(self.explicit) if index in exempt)


class Residency:
    """`call` runs a method on every worker and raises when one of them fails."""

    def __init__(self, call: EngineCall, folder: Path, vocabulary: Vocabulary, timeout_s: float) -> None:
        self._call = call
        self._folder = folder
        self._vocabulary = vocabulary
        self._timeout_s = timeout_s
        self._builds: dict[tuple[str, str], asyncio.Task[TenantConstraint | None]] = {}
        self._running: Counter[str] = Counter()
        self._resident: set[str] = set()
        self._wanted: set[tuple[str, str]] = set()

    @property
    def resident(self) -> int:
        """Number of constraints in the engine."""
        return len(self._resident)

    def begin(self, tenant: Tenant) -> asyncio.Task[TenantConstraint | None]:
        """Start (or find) the build of a tenant's constraint."""
        key = (tenant.name, tenant.list_version)
        task = self._builds.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._builds[key] = asyncio.create_task(self._build(tenant))
        return task

    async def constraint(self, tenant: Tenant) -> TenantConstraint | None:
        """The tenant's resident constraint; None when it has no forbidden strings. Raises ResidencyError."""
        task = self.begin(tenant)
        if task.done():
            return task.result()
        try:
            return await asyncio.wait_for(asyncio.shield(task), self._timeout_s)
        except TimeoutError as error:
            raise ResidencyError("the constraint is still being loaded") from error

    def acquire(self, digest: str) -> None:
        """A request uses `digest`."""
        self._running[digest] += 1

    def release(self, digest: str) -> None:
        """A request that used `digest` has ended."""
        self._running[digest] -= 1

    def serve_only(self, tenants: Iterable[Tenant]) -> None:
        """Name the tenants that are served now; `retire` drops the rest."""
        self._wanted = {(tenant.name, tenant.list_version) for tenant in tenants}

    async def retire(self) -> None:
        """Release constraints that nobody is served with any more and that no request uses."""
        kept, stale = set(), {}
        empty: list[tuple[str, str]] = []
        for key, task in self._builds.items():
            finished = task.done() and not task.cancelled() and task.exception() is None
            built = task.result() if finished else None
            if built is None:
                if task.done() and key not in self._wanted:
                    empty.append(key)
                continue
            if key in self._wanted or self._running[built.digest] > 0:
                kept.add(built.digest)
            else:
                stale[key] = built.digest
        for key in empty:
            del self._builds[key]
        for key, digest in stale.items():
            del self._builds[key]
            if digest not in kept and digest in self._resident:
                self._resident.discard(digest)
                await self._call("guard_release", (KIND, digest))

    async def _build(self, tenant: Tenant) -> TenantConstraint | None:
        try:
            built = await asyncio.to_thread(self._compile, tenant)
            if built is not None and built.digest not in self._resident:
                path = str(self._path(built.digest))
                await self._call("guard_stage", (KIND, path, built.digest))
                await self._call("guard_commit", (KIND, built.digest))
                self._resident.add(built.digest)
        except GuardError:
            raise
        except Exception as error:  # an engine call can fail in any way; without the constraint nothing may run
            log.error("constraint_not_loaded", tenant=tenant.index, error=type(error).__name__)
            raise ResidencyError("the constraint could not be loaded into the engine") from error
        return built

    def _compile(self, tenant: Tenant) -> TenantConstraint | None:
        patterns = forbidden_patterns(tenant)
        if not patterns:
            return None
        automaton = Automaton.compile([pattern.text for pattern in patterns], self._vocabulary)
        path = self._path(automaton.digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            automaton.save(path)
        index = {form: position for position, form in enumerate(automaton.patterns)}
        placed = [(index.get(mask_form(pattern.text)), pattern) for pattern in patterns]
        strict = {position for position, pattern in placed if not pattern.allow_echo}
        listed = {position for position, pattern in placed if position is not None and pattern.explicit}
        explicit = tuple(sorted(listed))
        return TenantConstraint(
            automaton, automaton.digest,
            echoable=frozenset(position for position, _ in placed if position is not None) - strict,
            explicit=explicit, explicit_patterns=tuple(automaton.patterns[position] for position in explicit),
        )

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.safetensors"
