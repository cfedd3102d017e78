"""Counters of all ranks become one number each, and only what was counted since the last look is added."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from guard.metrics import Metrics
from guard.service.engine_counters import EngineCounters, combined
from guard.service.readiness import Readiness


class Polled:
    """Counters that are read from `ranks`, or fail with what `fault` holds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ranks: list[dict[str, int]] = [{}]
        self.fault: Exception | None = None
        self.readiness = Readiness(SimpleNamespace(errored=False), None)  # type: ignore[arg-type]
        self.counters = EngineCounters(self.call, Metrics(self.registry), self.readiness, 0.001)

    async def call(self, method: str, arguments: tuple[Any, ...]) -> list[dict[str, int]]:
        assert (method, arguments) == ("guard_counters", ())
        if self.fault is not None:
            raise self.fault
        return self.ranks

    def value(self, series: str, **labels: str) -> float:
        return self.registry.get_sample_value(series, labels) or 0.0


def test_masked_tokens_come_from_the_stage_that_samples() -> None:
    first = {"corrupted_tokens": 7, "edited_tokens": 10, "expected_edited_tokens": 10}
    last = {"corrupted_tokens": 0, "edited_tokens": 5, "expected_edited_tokens": 5, "masked_tokens": 30}
    assert combined([first, last]) == {
        "corrupted_tokens": 7, "edited_tokens": 15, "expected_edited_tokens": 15, "masked_tokens": 30,
    }
    # tensor ranks do the same work and count the same
    assert combined([last, last])["masked_tokens"] == 30


def test_masked_tokens_of_a_pipeline_reach_the_metric_and_only_growth_is_added() -> None:
    one = Polled()
    one.counters.take([{"corrupted_tokens": 4}, {"masked_tokens": 30}])
    one.counters.take([{"corrupted_tokens": 6}, {"masked_tokens": 35, "masked_tokens:3": 35}])
    assert one.value("guard_masked_tokens_total") == 35
    assert one.value("guard_corrupted_tokens_total") == 6
    assert one.value("guard_engine_counter", name="masked_tokens") == 35
    assert one.registry.get_sample_value("guard_engine_counter", {"name": "masked_tokens:3"}) is None


def test_a_worker_that_was_started_anew_does_not_count_backwards() -> None:
    one = Polled()
    one.counters.take([{"masked_tokens": 30}])
    one.counters.take([{"masked_tokens": 2}])
    one.counters.take([{"masked_tokens": 5}])
    assert one.value("guard_masked_tokens_total") == 33


async def test_an_engine_that_fails_is_asked_again_until_the_server_drains() -> None:
    one = Polled()
    one.fault = RuntimeError("engine died")
    running = asyncio.create_task(one.counters.run())
    await asyncio.sleep(0.02)
    one.readiness.answered_s = 0.0
    one.fault, one.ranks = None, [{"masked_tokens": 1}]
    await asyncio.sleep(0.02)
    assert one.value("guard_masked_tokens_total") == 1 and one.readiness.answered_s > 0
    one.fault, one.readiness.draining = RuntimeError("engine died"), True
    await asyncio.wait_for(running, 5.0)
