"""The running server: wires snapshot, detector, residency, gate and HTTP together and keeps them up to date."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import structlog

from guard import ticket
from guard.classifiers.automaton import Vocabulary
from guard.classifiers.spans import PromptDecoder
from guard.engine.client import GuardedEngineClient
from guard.engine.constraints import SLOTS
from guard.errors import ConfigurationError, GuardError
from guard.metrics import Metrics
from guard.policy import Snapshot, Tenant
from guard.service.door.auth import GuardMiddleware, Limits
from guard.service.door.rules import RuleContext, special_texts
from guard.service.edit_residency import EditResidency
from guard.service.gate import GatePipeline
from guard.service.loading import load_detector, load_fitted, run_self_test
from guard.service.readiness import SILENCE_LIMIT_S, Readiness
from guard.service.residency import Residency
from guard.service.settings import Settings
from guard.service.snapshot import SnapshotWatcher
from guard.service.store.engine_record import EngineRecord, engine_record
from guard.service.store.keys import find_tenant

CALL_TIMEOUT_S = 60.0

log = structlog.get_logger("guard.server")


class GuardServer:
    """One server; made by `create` inside the event loop once the engine runs."""

    def __init__(
        self, engine: Any, args: Any, settings: Settings, watcher: SnapshotWatcher, pepper: bytes, tokenizer: Any,
        detector: Any, fitted: Any, record: EngineRecord,
    ) -> None:
        self._args, self._settings, self._watcher, self._pepper = args, settings, watcher, pepper
        self._tokenizer, self._detector = tokenizer, detector
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen: dict[str, float] = {}
        self._reloads = (0, 0)
        self.metrics = Metrics()
        # the engine is asked once every interval
        self.readiness = Readiness(
            engine, watcher, silence_limit_s=SILENCE_LIMIT_S + settings.counter_interval_s
        )
        self.residency = Residency(
            self._call, settings.home.resolve() / "automata", Vocabulary.from_tokenizer(tokenizer),
            settings.residency_timeout_s,
        )
        self.record = record
        self.edits = EditResidency(
            self._call, settings.home.resolve(), record.max_slots if record.sites else 0, settings.residency_timeout_s,
            self.metrics,
        )
        gate = GatePipeline(
            PromptDecoder(tokenizer), detector, self.residency, self.edits, self.metrics, ticket.read_key(), fitted
        )
        self.metrics.slots_capacity.labels("constraint").set(SLOTS - 1)
        # every running request has a corruption slot of its own
        self.metrics.slots_capacity.labels("corruption").set(engine.vllm_config.scheduler_config.max_num_seqs)
        self.client = GuardedEngineClient(engine, gate, on_shutdown=self._drain)

    @classmethod
    async def create(
        cls, engine: Any, args: Any, settings: Settings, watcher: SnapshotWatcher, pepper: bytes
    ) -> GuardServer:
        """Make the server, load all constraints, run the self-test. Raises GuardError when any of it fails."""
        tokenizer = engine.renderer.get_tokenizer()
        detector = load_detector(settings)
        fitted = load_fitted(settings, args.model)
        record = engine_record(await engine.collective_rpc("guard_ping", timeout=CALL_TIMEOUT_S))
        server = cls(engine, args, settings, watcher, pepper, tokenizer, detector, fitted, record)
        await server._self_test(engine)
        await server._take_over(watcher.current, wait=True)
        await server._wait_for_detectors(watcher.current)
        watcher.on_change(server._on_change)
        server._spawn(server._poll_counters())
        return server

    def install(self, app: Any) -> GuardMiddleware:
        """VLLM's application behind the guard, outside of everything else."""
        names = tuple(self._args.served_model_name or [self._args.model])
        length = int(self.client.model_config.max_model_len)
        return GuardMiddleware(
            app, directory=self, rules=RuleContext(names, special_texts(self._tokenizer)),
            limits=Limits(self._settings.max_body_bytes, self._settings.body_timeout_s),
            models_body=models_body(names, length),
        )

    def tenant_of_key(self, key: str) -> Tenant | None:
        """The tenant that a key belongs to, by the current snapshot."""
        snapshot = self._watcher.current
        name = find_tenant(key, snapshot.keys, self._pepper)
        return snapshot.tenants.get(name) if name is not None else None

    def serving(self) -> bool:
        """Whether generation requests are served."""
        return self.readiness.ready()

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Readiness with its reasons."""
        self._refresh_gauges()
        return self.readiness.ready(), self.readiness.report(self._building())

    def count_refused(self, reason: str) -> None:
        """Count a request that ended before the gate."""
        self.metrics.refused.labels(reason).inc()

    def _drain(self) -> None:
        self.readiness.draining = True
        log.info("draining")

    async def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return await self.client.inner.collective_rpc(method, timeout=CALL_TIMEOUT_S, args=arguments)

    def _on_change(self, snapshot: Snapshot) -> None:
        # called in the watcher's thread
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._take_over(snapshot, wait=False)))

    async def _take_over(self, snapshot: Snapshot, *, wait: bool) -> None:
        """Build what the tenants of `snapshot` need. Requests that come earlier wait for it in the gate."""
        packs = self.edits.prefetch(wanted_packs(snapshot))
        tenants = [tenant for tenant in snapshot.tenants.values() if tenant.listed]
        self.residency.serve_only(tenants)
        builds = [self.residency.begin(tenant) for tenant in tenants]
        results = await asyncio.gather(*builds, return_exceptions=True)
        failed = sum(isinstance(result, BaseException) for result in results)
        if failed:
            log.error("constraints_not_loaded", tenants=failed, revision=snapshot.revision)
        self.readiness.constraints_loaded = self.readiness.constraints_loaded or not failed
        prepared = await asyncio.gather(*(self._detector.prepare(tenant) for tenant in tenants), return_exceptions=True)
        broken = [result for result in prepared if isinstance(result, BaseException)]
        if broken:
            log.error("detectors_not_prepared", tenants=len(broken), error=type(broken[0]).__name__)
        if wait and packs:
            # a pack that cannot be loaded closes its tenants' requests, not the server
            await asyncio.wait(packs)
        if wait and failed:
            raise ConfigurationError("the constraints of the stored tenants could not be loaded into the engine")
        self._refresh_gauges()

    async def _wait_for_detectors(self, snapshot: Snapshot) -> None:
        # names hold at once; paraphrases only when the trained parts are there, so the start waits, but not for ever
        builds = [
            asyncio.create_task(self._detector.built(tenant)) for tenant in snapshot.tenants.values() if tenant.listed
        ]
        if builds:
            _, late = await asyncio.wait(builds, timeout=self._settings.detector_wait_s)
            if late:
                log.warning("detectors_still_building", tenants=len(late))

    async def _self_test(self, engine: Any) -> None:
        await run_self_test(engine, self._tokenizer)
        self.readiness.self_test_passed = True

    async def _poll_counters(self) -> None:
        self.readiness.engine_answered()
        while True:
            await asyncio.sleep(self._settings.counter_interval_s)
            try:
                await self.residency.retire()
                self._take_counters(await self._call("guard_counters", ()))
                self.readiness.engine_answered()
            except GuardError as error:
                log.warning("counters_not_read", error=type(error).__name__)
            except Exception as error:  # a dying engine; readiness reports it
                log.warning("counters_not_read", error=type(error).__name__)
                if self.readiness.draining:
                    return
            self._refresh_gauges()

    def _take_counters(self, per_rank: list[dict[str, int]]) -> None:
        # every rank counts the same tokens, so the first one speaks for all; but each stage of a pipeline has its sites
        current = {name: float(value) for name, value in (per_rank[0] if per_rank else {}).items()}
        for name in ("edited_tokens", "expected_edited_tokens"):
            current[name] = float(sum(rank.get(name, 0) for rank in per_rank))
        metrics = self.metrics
        for name, value in current.items():
            if ":" not in name:
                metrics.engine_counter.labels(name).set(value)
        for name, series in (
            ("corrupted_tokens", metrics.corrupted_tokens),
            ("corrupted_tokens", metrics.counted.labels("corruption")),
            ("expected_corrupted_tokens", metrics.expected.labels("corruption")),
            ("edited_tokens", metrics.edited_tokens),
            ("edited_tokens", metrics.counted.labels("edit")),
            ("expected_edited_tokens", metrics.expected.labels("edit")),
            ("masked_tokens", metrics.masked_tokens),
        ):
            series.inc(max(0.0, current.get(name, 0.0) - self._seen.get(name, 0.0)))
        metrics.slots_in_use.labels("edit").set(self.edits.resident)
        metrics.slots_in_use.labels("constraint").set(current.get("resident", self.residency.resident))
        self._seen = current

    def _refresh_gauges(self) -> None:
        state, metrics = self._watcher.state(), self.metrics
        metrics.snapshot_age.set(state.age_s)
        metrics.snapshot_revision.set(state.revision)
        metrics.store_healthy.set(state.healthy)
        metrics.tenants.set(len(self._watcher.current.tenants))
        metrics.detector_building.set(self._building())
        self.readiness.packs_failed = self.edits.failed
        metrics.ready.set(self.readiness.ready())
        reloads, failures = self._reloads
        metrics.reloads.labels("success").inc(max(0, state.reloads - reloads))
        metrics.reloads.labels("failure").inc(max(0, state.failures - failures))
        self._reloads = (state.reloads, state.failures)

    def _building(self) -> int:
        tenants = self._watcher.current.tenants.values()
        return sum(tenant.listed and bool(self._detector.building(tenant)) for tenant in tenants)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def wanted_packs(snapshot: Snapshot) -> list[str]:
    """Packs of all tenants in the order in which they are loaded: those of every request first."""
    edits = [(edit.when != "always", edit.pack) for tenant in snapshot.tenants.values() for edit in tenant.policy.edits]
    return list(dict.fromkeys(pack for _, pack in sorted(edits)))


def models_body(names: Sequence[str], max_model_len: int) -> bytes:
    """The answer to `GET /v1/models`: names only, no paths."""
    created_s = int(time.time())
    entries = [
        {"id": name, "object": "model", "created": created_s, "owned_by": "vllm-guard", "max_model_len": max_model_len}
        for name in names
    ]
    return json.dumps({"object": "list", "data": entries}).encode()
