"""The running server: what its HTTP layer asks, and the work that goes on beside requests."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from guard.classifiers.detector import Detector
from guard.engine.client import GuardedEngineClient
from guard.metrics import Metrics
from guard.policy import Tenant
from guard.service.door.auth import GuardMiddleware, Limits
from guard.service.door.rules import RuleContext
from guard.service.engine_counters import EngineCounters
from guard.service.follower import SnapshotFollower
from guard.service.readiness import Readiness, Shortfalls
from guard.service.residency.compiled_lists import CompiledLists
from guard.service.residency.hold import Residency
from guard.service.snapshot import SnapshotWatcher
from guard.service.store.engine_record import EngineRecord
from guard.service.store.keys import find_tenant

log = structlog.get_logger("guard.server")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a server is made of; see `guard.service.factory`. `client` is the engine client with the gate in it."""

    client: GuardedEngineClient
    detector: Detector
    lists: CompiledLists
    residency: Residency
    watcher: SnapshotWatcher
    follower: SnapshotFollower
    counters: EngineCounters
    readiness: Readiness
    metrics: Metrics
    record: EngineRecord


class GuardServer:
    """Looks tenants up for the HTTP layer, says whether requests are served, and keeps the metrics up to date.

    `interval_s`: seconds between two looks at the gauges.
    """

    def __init__(self, parts: Parts, pepper: bytes, interval_s: float) -> None:
        self.parts, self._pepper, self._interval_s = parts, pepper, interval_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._counted: dict[str, int] = {}
        self._running = 0
        parts.detector.give_way_to(self.busy)
        parts.follower.busy = self.busy

    @property
    def client(self) -> GuardedEngineClient:
        """The engine client that vLLM's routes are given."""
        return self.parts.client

    async def start(self, detector_wait_s: float) -> None:
        """Take the stored tenants over and begin to follow changes, counters and gauges.

        Waits for the detectors of the tenants that are made ready ahead, at most `detector_wait_s` seconds: names hold
        at once, paraphrases only when the trained parts are there.
        """
        self._spawn(self.parts.detector.warm())
        ahead = await self.parts.follower.start()
        builds = [asyncio.create_task(self.parts.detector.built(tenant)) for tenant in ahead]
        if builds:
            _, late = await asyncio.wait(builds, timeout=detector_wait_s)
            if late:
                log.warning("detectors_still_building", tenants=len(late))
        self.parts.readiness.warmed = True
        self.refresh()
        for work in (self.parts.follower.run(), self.parts.counters.run(), self._keep_fresh()):
            self._spawn(work)

    def drain(self) -> None:
        """The server is ending: no new requests."""
        self.parts.readiness.draining = True
        log.info("draining")

    def install(self, app: Any, rules: RuleContext, limits: Limits) -> GuardMiddleware:
        """VLLM's application behind the guard, outside of everything else."""
        length = int(self.client.model_config.max_model_len)
        return GuardMiddleware(
            app, directory=self, rules=rules, limits=limits, models_body=models_body(rules.models, length)
        )

    def tenant_of_key(self, key: str) -> Tenant | None:
        """The tenant that a key belongs to, by the current snapshot."""
        snapshot = self.parts.watcher.current
        name = find_tenant(key, snapshot.keys, self._pepper)
        return snapshot.tenants.get(name) if name is not None else None

    def serving(self) -> bool:
        """Whether generation requests are served."""
        return self.parts.readiness.ready()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Entered for as long as a request is answered."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._running > 0

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Readiness with its reasons."""
        shortfalls = self.refresh()
        return self.parts.readiness.ready(), self.parts.readiness.report(shortfalls)

    def count_refused(self, reason: str, tenant: Tenant | None) -> None:
        """Count a request that ended before the gate."""
        self.parts.metrics.refused.labels(reason, "none" if tenant is None else str(tenant.index)).inc()

    def shortfalls(self) -> Shortfalls:
        """What does not work for single tenants now."""
        parts = self.parts
        return Shortfalls(
            lists=parts.lists.failures, detectors=parts.detector.failures(), packs=parts.residency.packs.failures,
            detectors_building=parts.detector.building_count,
        )

    def refresh(self) -> Shortfalls:
        """Bring gauges and the counts of other parts into the metrics; what they say of single tenants."""
        parts, metrics, state = self.parts, self.parts.metrics, self.parts.watcher.state()
        shortfalls = self.shortfalls()
        metrics.snapshot_age.set(state.age_s)
        metrics.snapshot_revision.set(state.revision)
        metrics.store_healthy.set(state.healthy)
        metrics.tenants.set(len(parts.watcher.current.tenants))
        metrics.detector_building.set(shortfalls.detectors_building)
        metrics.detector_failed.set(len(shortfalls.detectors))
        metrics.lists_failed.set(len(shortfalls.lists))
        metrics.ready.set(parts.readiness.ready())
        detector = parts.detector.counters
        for name, series, total in (
            ("reloads", metrics.reloads.labels("success"), state.reloads),
            ("reload_failures", metrics.reloads.labels("failure"), state.failures),
            ("builds", metrics.detector_builds.labels("success"), detector.builds - detector.build_failures),
            ("build_failures", metrics.detector_builds.labels("failure"), detector.build_failures),
            ("timeouts", metrics.detector_timeouts, detector.timeouts),
        ):
            series.inc(max(0, total - self._counted.get(name, 0)))
            self._counted[name] = total
        return shortfalls

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                self.refresh()
            except Exception as error:  # gauges must not end with one bad look
                log.warning("gauges_not_refreshed", error=type(error).__name__)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def models_body(names: Sequence[str], max_model_len: int) -> bytes:
    """The answer to `GET /v1/models`: names only, no paths."""
    created_s = int(time.time())
    entries = [
        {"id": name, "object": "model", "created": created_s, "owned_by": "vllm-guard", "max_model_len": max_model_len}
        for name in names
    ]
    return json.dumps({"object": "list", "data": entries}).encode()
