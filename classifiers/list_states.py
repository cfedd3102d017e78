"""The lists that the detector knows: their names, and the trained parts once these are built.

A list is made known by the first request (or by `prepare`); what has not been used for longest is forgotten and made
again when it is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass

from guard.classifiers.build_queue import Work
from guard.classifiers.builds import Build, Workshop
from guard.classifiers.forgetlist import TrainedParts, needs_encoder
from guard.classifiers.lexical import LexicalMatcher
from guard.classifiers.versions import KEPT_TENANTS, Versions
from guard.classifiers.word_frequency import loaded
from guard.policy import Tenant

NO_ENCODER = "the detector has no sentence encoder"
# targets from which names are compiled outside the event loop; the first list of all also reads the word frequencies
_LARGE_LIST = 100
Train = Callable[[Tenant], Work[TrainedParts]]


@dataclass(frozen=True, slots=True)
class ListState:
    """One list under one detector policy. `build` makes the trained parts; None where there are none to be had.

    `wants_parts` says that the list cannot be judged without trained parts.
    """

    lexical: LexicalMatcher
    names: tuple[str, ...]
    build: Build[TrainedParts] | None
    wants_parts: bool

    @property
    def parts(self) -> TrainedParts | None:
        """The trained parts, once they are built."""
        return self.build.result if self.build is not None else None

    @property
    def failure(self) -> str | None:
        """Why the trained parts are not there, if their build failed."""
        if self.build is None:
            return NO_ENCODER if self.wants_parts else None
        return self.build.failure


class ListStates:
    """Call from one event loop. Without `train` no list gets trained parts."""

    def __init__(self, workshop: Workshop, train: Train | None, *, kept_tenants: int = KEPT_TENANTS) -> None:
        self._workshop, self._train = workshop, train
        self._states: Versions[ListState] = Versions(_drop, tenants=kept_tenants)
        self._compiling: dict[tuple[str, Hashable], asyncio.Task[ListState]] = {}

    def __len__(self) -> int:
        return len(self._states)

    async def of(self, tenant: Tenant) -> ListState:
        """The state of a tenant's list; its names are compiled now if they were not."""
        state = self._states.use(tenant, _version(tenant))
        if state is not None:
            return state
        if len(tenant.targets) < _LARGE_LIST and loaded():
            return self._add(tenant, LexicalMatcher(tenant.targets))
        place = (tenant.name, _version(tenant))
        task = self._compiling.get(place)
        if task is None:
            task = self._compiling[place] = asyncio.get_running_loop().create_task(self._compile(tenant))
            task.add_done_callback(lambda _: self._compiling.pop(place, None))
        # a request that gives up must not stop what others wait for
        return await asyncio.shield(task)

    def look(self, tenant: Tenant) -> ListState | None:
        """The state of a tenant's list, if it is known; does not count as a use."""
        return self._states.look(tenant, _version(tenant))

    def last_built(self, tenant: Tenant) -> ListState | None:
        """The newest list of this tenant that has its trained parts."""
        return next((state for state in self._states.newest_first(tenant) if state.parts is not None), None)

    def failures(self) -> dict[int, str]:
        """By tenant index: why the current list has no trained parts, where their build failed."""
        return {index: state.failure for index, state in self._states.newest() if state.failure is not None}

    def all_building(self) -> set[int]:
        """Indices of the tenants whose current list is being built."""
        return {index for index, state in self._states.newest() if state.build is not None and state.build.running}

    def keep_only(self, names: Collection[str]) -> None:
        """Forget the lists of all tenants but those of `names`."""
        self._states.keep_only(names)

    def close(self) -> None:
        """Stop background work."""
        for task in list(self._compiling.values()):
            task.cancel()
        self._states.keep_only(())

    async def _compile(self, tenant: Tenant) -> ListState:
        lexical = await asyncio.get_running_loop().run_in_executor(None, LexicalMatcher, tenant.targets)
        return self._add(tenant, lexical)

    def _add(self, tenant: Tenant, lexical: LexicalMatcher) -> ListState:
        wants_parts, train = needs_encoder(tenant), self._train
        build: Build[TrainedParts] | None = None
        if wants_parts and train is not None:
            build = Build(self._workshop, "detector", tenant.index, lambda: train(tenant))
        state = ListState(lexical, tuple(target.name for target in tenant.targets), build, wants_parts)
        self._states.add(tenant, _version(tenant), state)
        return state


def _version(tenant: Tenant) -> tuple[str, str]:
    return tenant.list_version, tenant.policy.detector.model_dump_json(exclude={"timeout_s"})


def _drop(state: ListState) -> None:
    if state.build is not None:
        state.build.drop()
