"""Takes the tenants of each snapshot over: forgets what is gone, and makes ready what will be asked for soon.

Lists, packs and detectors of any tenant are made by the first request that needs them. What is done ahead is bounded:
at the start the first tenants, later those that changed and were in use.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import structlog

from guard.classifiers.detector import Detector
from guard.errors import ResidencyError
from guard.metrics import Metrics
from guard.policy import Snapshot, Tenant
from guard.service.residency.compiled_lists import CompiledLists, needs_list
from guard.service.residency.hold import Residency
from guard.service.snapshot import SnapshotWatcher, difference

# rest after each tenant that is made ready while requests are served, in units of the time that it took; then the
# longest wait for a moment without requests, and between two looks
REST, PATIENCE_S, LOOK_S = 2.0, 0.2, 0.004

log = structlog.get_logger("guard.follower")


class SnapshotFollower:
    """One per server, on its event loop. `warm_tenants` is how many tenants are made ready ahead at a time.

    While `busy` says that a request runs, they wait a little.
    """

    def __init__(
        self, watcher: SnapshotWatcher, lists: CompiledLists, residency: Residency, detector: Detector,
        metrics: Metrics, warm_tenants: int,
    ) -> None:
        self._watcher, self._lists, self._residency, self._detector = watcher, lists, residency, detector
        self._metrics, self._warm_tenants = metrics, warm_tenants
        self.busy: Callable[[], bool] = lambda: False
        self._taken: Snapshot | None = None
        self._changed = asyncio.Event()

    async def start(self) -> list[Tenant]:
        """Take the current snapshot over and return the tenants that were made ready.

        Changes are heard of from here on: one that comes during the start is taken over by `run`.
        """
        loop = asyncio.get_running_loop()

        def heard(snapshot: Snapshot) -> None:
            # called in the watcher's thread
            loop.call_soon_threadsafe(self._changed.set)

        return await self._take_over(self._watcher.subscribe(heard))

    async def run(self) -> None:
        """Take over every later snapshot, one after the other; of several at once only the last."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            snapshot = self._watcher.current
            if snapshot is self._taken:
                continue
            try:
                await self._take_over(snapshot)
            except Exception as error:  # the follower must outlive any fault: the gate makes ready what it missed
                log.error("snapshot_not_taken_over", revision=snapshot.revision, error=type(error).__name__)
                self._metrics.reloads.labels("failure").inc()

    async def _take_over(self, snapshot: Snapshot) -> list[Tenant]:
        listed = [tenant for tenant in snapshot.tenants.values() if tenant.listed]
        # before the old versions of their lists are forgotten
        ahead = self._ahead(snapshot, listed)
        self._lists.serve_only(snapshot.tenants)
        self._residency.lists.serve_only(self._lists.needed)
        self._detector.keep_only(listed)
        packs = wanted_packs(snapshot)
        self._residency.packs.serve_only(frozenset(packs).__contains__)
        loads = self._residency.packs.prefetch(packs)
        first, self._taken = self._taken is None, snapshot
        for tenant in ahead:
            started_s = time.monotonic()
            await self._make_ready(tenant)
            if not first:
                # many lists may have changed at once, and requests need the cores
                await self._give_way(REST * (time.monotonic() - started_s))
        if loads:
            # a pack that cannot be loaded closes its tenants' requests, not the server
            await asyncio.wait(loads)
        return ahead

    def _ahead(self, snapshot: Snapshot, listed: Iterable[Tenant]) -> list[Tenant]:
        """Who is made ready now: at the start whoever comes first, later who changed and was in use, or is new."""
        if self._taken is None:
            return sorted(listed, key=lambda tenant: tenant.index)[: self._warm_tenants]
        in_use = self._lists.tenants_seen()
        changed = [tenant for tenant in difference(self._taken, snapshot)[0] if tenant.listed]
        changed.sort(key=lambda tenant: (tenant.name not in in_use, tenant.index))
        return changed[: self._warm_tenants]

    async def _give_way(self, rest_s: float) -> None:
        await asyncio.sleep(rest_s)
        until_s = time.monotonic() + PATIENCE_S
        while self.busy() and time.monotonic() < until_s:
            await asyncio.sleep(LOOK_S)

    async def _make_ready(self, tenant: Tenant) -> None:
        try:
            compiled = await self._lists.of(tenant) if needs_list(tenant) else None
            if compiled is not None:
                loads = self._residency.lists.prefetch((compiled.digest,))
                if loads:
                    await asyncio.wait(loads)
                if compiled.digest in self._residency.lists.failures:
                    self._metrics.reloads.labels("failure").inc()
        except ResidencyError:
            # logged where it happened; this tenant alone is closed
            self._metrics.reloads.labels("failure").inc()
        try:
            await self._detector.prepare(tenant)
        except Exception as error:  # a detector that cannot be prepared gives no verdict, which the gate refuses
            log.error("detector_not_prepared", tenant=tenant.index, error=type(error).__name__)


def wanted_packs(snapshot: Snapshot) -> list[str]:
    """Packs of all tenants in the order in which they are loaded: those of every request first."""
    edits = [(edit.when != "always", edit.pack) for tenant in snapshot.tenants.values() for edit in tenant.policy.edits]
    return list(dict.fromkeys(pack for _, pack in sorted(edits)))

