"""What the gate counts."""

from __future__ import annotations

from contextlib import AsyncExitStack

from guard.engine.admission import RequestContext
from guard.metrics import Metrics
from guard.plan import Plan
from guard.planner import Decision
from guard.verdict import Verdict


class GateCounts:
    """Counts what happens to requests in `metrics`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._corrupted = 0

    def decided(self, context: RequestContext, decision: Decision, verdict: Verdict) -> None:
        """What was decided about a prompt."""
        metrics = self._metrics
        metrics.requests.labels(str(context.tenant.index), decision.action, "input").inc()
        if verdict.unknown:
            metrics.detector_unknown.inc()
        if verdict.hits:
            best = max(verdict.hits, key=lambda hit: hit.score)
            metrics.detector_score.labels(best.part).observe(best.score)
        if decision.plan.corruption is not None:
            metrics.planned.labels("corruption").inc()
        if decision.plan.constraint is not None:
            metrics.planned.labels("constraint").inc()
        if decision.plan.opening is not None:
            metrics.planned.labels("opening").inc()
        if decision.plan.edits:
            metrics.planned.labels("edit").inc()

    def running(self, context: RequestContext, plan: Plan, stack: AsyncExitStack) -> None:
        """A request runs until `stack` is left."""
        if plan.corruption is not None:
            self._count_corrupted(1)
            stack.callback(self._count_corrupted, -1)
        finished = self._metrics.requests.labels(str(context.tenant.index), "finished", "output")
        stack.callback(finished.inc)

    def output(self, context: RequestContext, held_back: int, rollbacks: int, filtered: int) -> None:
        """What the output check did: tokens held back, answers rolled back, answers ended with `content_filter`."""
        metrics = self._metrics
        if held_back:
            metrics.heldback_tokens.inc(held_back)
        if rollbacks:
            metrics.rollbacks.inc(rollbacks)
        if filtered:
            metrics.filtered.inc(filtered)
            metrics.requests.labels(str(context.tenant.index), "content_filter", "output").inc(filtered)

    def _count_corrupted(self, change: int) -> None:
        # a gauge of the mode `mostrecent` can only be set
        self._corrupted += change
        self._metrics.slots_in_use.labels("corruption").set(self._corrupted)
