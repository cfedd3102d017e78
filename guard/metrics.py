"""Prometheus series of the guard, on the same registry and `/metrics` page as vLLM's own.

Labels are small and closed: tenant index, action, phase, stage, kind. No prompt, key, name or term is ever a label.
`SERIES` lists every series; a test compares it with the documentation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

KINDS = ("corruption", "constraint", "edit")
# kinds whose tokens the plans tell in advance
COUNTED_KINDS = ("corruption", "edit")
# kinds that lie in slots of the engine
RESIDENT_KINDS = ("constraint", "edit")
STAGES = ("decode", "detect", "plan", "residency", "sign", "total")
LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SCORE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 0.99)

SERIES: dict[str, str] = {
    "guard_requests_total": "Requests by tenant index, action and phase (input: the gate's decision; output: the end).",
    "guard_refused_total": "Requests that ended before the engine, by reason and tenant index (none: without a key).",
    "guard_stage_latency_seconds": "Time spent in a stage of the gate.",
    "guard_detector_score": "Best detector score of a prompt that touched at least one target.",
    "guard_detector_building": "Tenants whose semantic index or heads are being built.",
    "guard_detector_failed": "Tenants whose semantic index or heads could not be built; names still hold.",
    "guard_detector_builds_total": "Builds of detectors, by result.",
    "guard_detector_timeouts_total": "Prompts and generated sentences that were not classified in time.",
    "guard_detector_unknown_total": "Prompts and generated sentences without a verdict (error, NaN, timeout).",
    "guard_unguarded_total": "Requests and sentences that passed without a verdict because their policy fails open.",
    "guard_corrupted_tokens_total": "Prompt tokens that the engine corrupted.",
    "guard_edited_tokens_total": "Tokens whose activations the engine edited, once for each lane, site and rank.",
    "guard_masked_tokens_total": "Vocabulary entries that the constraint masked, on the ranks that sample.",
    "guard_heldback_tokens_total": "Generated tokens that were held back before their release.",
    "guard_rollbacks_total": "Times an answer was rolled back and continued because something forbidden appeared.",
    "guard_filtered_total": "Answers that ended with finish_reason content_filter.",
    "guard_planned_total": "Prompts for which an intervention was planned, by kind.",
    "guard_enforcement_expected_total": "Tokens that the engine was to intervene on, by the plans it scheduled.",
    "guard_enforcement_counted_total": "Tokens that the engine's kernels counted as intervened on.",
    "guard_engine_counter": "Counters of the engine's guard as last read, by name.",
    "guard_slots_in_use": "Slots taken by kind: resident lists and edit packs, corrupted requests that run or wait.",
    "guard_slots_capacity": "Slots for resident interventions by kind.",
    "guard_residency_wait_seconds": "Time that a request waited until the lists or packs of its plan were resident.",
    "guard_residency_waiting": "Requests that wait for a slot because all that is resident is in use, by kind.",
    "guard_loads_total": "Loads of lists (constraint) and packs (edit) into the engine, by result.",
    "guard_evictions_total": "Lists and packs that left their slot for another one.",
    "guard_lists_failed": "Tenants whose forget-list cannot be used; their requests get 503.",
    "guard_snapshot_age_seconds": "Seconds since the tenant store was last read successfully.",
    "guard_snapshot_revision": "Revision of the tenants being served.",
    "guard_store_healthy": "1 when the last read of the tenant store succeeded.",
    "guard_reloads_total": "Changes of the tenant store by result; failure: an outage of the store, or a failed list.",
    "guard_tenants": "Tenants being served.",
    "guard_ready": "1 when requests are served.",
}


class Metrics:
    """All series of one server. The default registry is the one that vLLM's `/metrics` shows."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, *labels: str) -> Counter:
            return Counter(name, SERIES[name], labels, registry=registry)

        def gauge(name: str, *labels: str) -> Gauge:
            return Gauge(name, SERIES[name], labels, registry=registry, multiprocess_mode="mostrecent")

        def histogram(name: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, SERIES[name], labels, buckets=buckets, registry=registry)

        self.requests = counter("guard_requests_total", "tenant", "action", "phase")
        self.refused = counter("guard_refused_total", "reason", "tenant")
        self.stage_latency = histogram("guard_stage_latency_seconds", LATENCY_BUCKETS_S, "stage")
        self.detector_score = histogram("guard_detector_score", SCORE_BUCKETS, "part")
        self.detector_building = gauge("guard_detector_building")
        self.detector_failed = gauge("guard_detector_failed")
        self.detector_builds = counter("guard_detector_builds_total", "result")
        self.detector_timeouts = counter("guard_detector_timeouts_total")
        self.detector_unknown = counter("guard_detector_unknown_total")
        self.unguarded = counter("guard_unguarded_total")
        self.corrupted_tokens = counter("guard_corrupted_tokens_total")
        self.edited_tokens = counter("guard_edited_tokens_total")
        self.masked_tokens = counter("guard_masked_tokens_total")
        self.heldback_tokens = counter("guard_heldback_tokens_total")
        self.rollbacks = counter("guard_rollbacks_total")
        self.filtered = counter("guard_filtered_total")
        self.planned = counter("guard_planned_total", "kind")
        self.expected = counter("guard_enforcement_expected_total", "kind")
        self.counted = counter("guard_enforcement_counted_total", "kind")
        self.engine_counter = gauge("guard_engine_counter", "name")
        self.slots_in_use = gauge("guard_slots_in_use", "kind")
        self.slots_capacity = gauge("guard_slots_capacity", "kind")
        self.residency_wait = histogram("guard_residency_wait_seconds", LATENCY_BUCKETS_S, "kind")
        self.residency_waiting = gauge("guard_residency_waiting", "kind")
        self.loads = counter("guard_loads_total", "kind", "result")
        self.evictions = counter("guard_evictions_total", "kind")
        self.lists_failed = gauge("guard_lists_failed")
        self.snapshot_age = gauge("guard_snapshot_age_seconds")
        self.snapshot_revision = gauge("guard_snapshot_revision")
        self.store_healthy = gauge("guard_store_healthy")
        self.reloads = counter("guard_reloads_total", "result")
        self.tenants = gauge("guard_tenants")
        self.ready = gauge("guard_ready")
        self._start_at_zero()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Observe the time spent in the block as stage `name`."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.stage_latency.labels(name).observe(time.perf_counter() - started_s)

    def _start_at_zero(self) -> None:
        # a series that appears only with its first event cannot be alerted on
        for stage in STAGES:
            self.stage_latency.labels(stage)
        for kind in KINDS:
            self.planned.labels(kind)
            self.slots_in_use.labels(kind)
            self.slots_capacity.labels(kind)
        for kind in COUNTED_KINDS:
            self.expected.labels(kind)
            self.counted.labels(kind)
        for kind in RESIDENT_KINDS:
            self.residency_wait.labels(kind)
            self.residency_waiting.labels(kind)
            self.evictions.labels(kind)
        for result in ("success", "failure"):
            self.reloads.labels(result)
            self.detector_builds.labels(result)
            for kind in RESIDENT_KINDS:
                self.loads.labels(kind, result)
