"""What the requests that run now need in the engine: one way to hold it for lists and packs alike."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType

from guard.plan import Plan
from guard.service.residency.residents import Residents


class Residency:
    """The resident lists and packs of one server."""

    def __init__(self, lists: Residents, packs: Residents) -> None:
        self.lists, self.packs = lists, packs

    def hold(self, plan: Plan) -> Hold:
        """Everything that `plan` names, resident from entry to exit. Entering raises ResidencyError."""
        return Hold(self, plan)


class Hold(AbstractAsyncContextManager["Hold"]):
    """What one generation refers to. Lists come before packs for everybody, so that nobody who holds packs waits."""

    def __init__(self, residency: Residency, plan: Plan) -> None:
        self._residency = residency
        self._digest = plan.constraint.digest if plan.constraint is not None else ""
        self._packs = plan.packs
        self._lists: tuple[str, ...] = ()

    async def __aenter__(self) -> Hold:
        if self._digest:
            await self.add_list(self._digest)
        try:
            await self._residency.packs.acquire(self._packs)
        except BaseException:
            self._residency.lists.release(self._lists)
            raise
        return self

    async def add_list(self, digest: str) -> None:
        """Hold one list more: a constraint that comes on only after a roll-back. Raises ResidencyError."""
        if digest in self._lists:
            return
        await self._residency.lists.acquire((digest,))
        if digest in self._lists:
            # another choice of the same request was faster; one reference is given back at the end
            self._residency.lists.release((digest,))
        else:
            self._lists = (*self._lists, digest)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._residency.packs.release(self._packs)
        self._residency.lists.release(self._lists)
