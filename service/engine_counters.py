"""Reads what the engine's kernels counted, every few seconds, into the metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from guard.metrics import Metrics
from guard.service.readiness import Readiness
from guard.service.residency.engine_loads import EngineCall

# each rank has tokens of its own to edit: stages of a pipeline have other sites, and tensor ranks edit their copies
_SUMMED = ("edited_tokens", "expected_edited_tokens")

log = structlog.get_logger("guard.counters")


class EngineCounters:
    """`call` runs a method on every worker; an answer also shows that the engine is alive."""

    def __init__(
        self, call: EngineCall, metrics: Metrics, readiness: Readiness, interval_s: float,
    ) -> None:
        self._call, self._metrics, self._readiness, self._interval_s = call, metrics, readiness, interval_s
        self._seen: dict[str, int] = {}

    async def run(self) -> None:
        """Read until the server drains and the engine has gone."""
        self._readiness.engine_answered()
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                self.take(await self._call("guard_counters", ()))
            except Exception as error:  # a dying engine; readiness reports it
                log.warning("counters_not_read", error=type(error).__name__)
                if self._readiness.draining:
                    return
            else:
                self._readiness.engine_answered()

    def take(self, per_rank: Sequence[dict[str, int]]) -> None:
        """Add what was counted since the last call, from the counters of all ranks."""
        current = combined(per_rank)
        metrics = self._metrics
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
            # a restarted worker begins at zero again
            series.inc(max(0, current.get(name, 0) - self._seen.get(name, 0)))
        self._seen = current


def combined(per_rank: Sequence[dict[str, int]]) -> dict[str, int]:
    """One number for each counter. Ranks that do the same work count the same, others count nothing or their own.

    The first stage of a pipeline corrupts, the last one masks: the largest number is that of whoever did it.
    """
    found: dict[str, int] = {}
    for rank in per_rank:
        for name, value in rank.items():
            found[name] = found.get(name, 0) + value if name in _SUMMED else max(found.get(name, 0), value)
    return found
