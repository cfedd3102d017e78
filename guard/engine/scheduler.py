"""`--scheduler-cls guard.engine.scheduler.GuardScheduler`: the tripwire behind the gate.

Its import installs the gate, its construction refuses to go on without it, and it counts which automata and packs the
requests in the engine still refer to. It changes no decision
of vLLM's scheduler, and it never raises for a request: an exception here would end the engine.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from guard.engine import gate
from guard.engine.gate import RequestGate
from guard.errors import EngineMismatchError, TicketError
from guard.ticket import read_key

gate.install()


class GuardScheduler(Scheduler):
    """vLLM's scheduler (its asynchronous form when the engine schedules asynchronously) with reference counts."""

    def __new__(cls, *args: Any, **kwargs: Any) -> GuardScheduler:
        config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
        chosen = GuardAsyncScheduler if config.scheduler_config.async_scheduling else cls
        return object.__new__(chosen)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not gate.installed_everywhere():
            raise EngineMismatchError("the guard's request gate is not in place; refusing to start the engine")
        super().__init__(*args, **kwargs)
        # the wrapped `preprocess_add_request` finds it here
        self.guard_gate = RequestGate(read_key())
        self._guard_digests: dict[str, tuple[str, ...]] = {}  # request id -> digests of automaton and packs
        self._guard_references: Counter[str] = Counter()

    def add_request(self, request: Request) -> None:
        """Count what an admitted request refers to, then add it."""
        digests = self._guard_needs(request)
        if digests and request.request_id not in self._guard_digests:
            self._guard_digests[request.request_id] = digests
            self._guard_references.update(digests)
        super().add_request(request)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        for digest in self._guard_digests.pop(request.request_id, ()):
            self._guard_references[digest] -= 1
            if self._guard_references[digest] <= 0:
                del self._guard_references[digest]
        return super()._free_request(request, *args, **kwargs)

    def guard_counters(self) -> dict[str, Any]:
        """Gate counts and `references`: requests in the engine per digest of an automaton or pack."""
        # copied at once: requests come and go on the engine's thread only, which also runs this call
        return {**self.guard_gate.counters(), "references": dict(self._guard_references)}

    def _guard_needs(self, request: Request) -> tuple[str, ...]:
        """What an admitted request refers to. The gate has checked signature, prompt and expiry."""
        try:
            plan = self.guard_gate.tickets.of(request.sampling_params).plan
        except TicketError:
            return ()
        constraint = (plan.constraint.digest,) if plan.constraint else ()
        return (*constraint, *(edit.pack for edit in plan.edits))


class GuardAsyncScheduler(GuardScheduler, AsyncScheduler):
    """The same for asynchronous scheduling; chosen by `GuardScheduler` itself."""
