"""What both model runners share: plans of live requests in device tables, and the slots of every step's tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from guard.engine.ops import EngineBuffers
from guard.errors import TicketError
from guard.kernels.route import coalesce, fill
from guard.plan import Plan
from guard.ticket import EXTRA_ARG, read_key, verify


@dataclass(slots=True)
class PlanRouter:
    """Keeps the corruption of every live request in `buffers` and marks the tokens of each step.

    A request slot is an index below the number of requests that can be in one batch; request slot r uses corruption
    slot r + 1. `expected_tokens` is counted on the host from the schedule alone, so that it can be compared with what
    the kernel counted on the device.
    """

    buffers: EngineBuffers
    ranges: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    expected_tokens: int = 0
    invalid_tickets: int = 0
    marked: bool = False

    def admit(self, request_slot: int, sampling_params: Any) -> None:
        """Put the corruption of a request into its slot; the slot keeps nothing of its previous owner.

        A request without a valid ticket gets no corruption: the logits processor lets it say nothing.
        """
        self.release(request_slot)
        plan = self._plan(sampling_params.extra_args if sampling_params is not None else None)
        if plan is None or plan.corruption is None:
            return
        corruption = plan.corruption
        ranges = coalesce(corruption.ranges, plan.prompt_length, self.buffers.routes.max_ranges)
        if not ranges:
            return
        with _host_transfer():
            self.buffers.corruption.set(
                request_slot + 1, kind=corruption.kind, dims=corruption.dims, rho=corruption.rho, seed=corruption.seed
            )
            self.buffers.routes.set(
                request_slot, slot=request_slot + 1, prompt_length=plan.prompt_length, ranges=ranges
            )
        self.ranges[request_slot] = ranges

    def release(self, request_slot: int) -> None:
        """The request of this slot has left the batch."""
        if self.ranges.pop(request_slot, None) is not None:
            self.buffers.routes.clear(request_slot)
            self.buffers.corruption.clear(request_slot + 1)

    def mark(
        self, query_start_loc: Tensor, positions: Tensor, request_slots: Tensor, num_padded: int,
        scheduled: Mapping[int, tuple[int, int]],
    ) -> None:
        """Fill the slots and positions of a step.

        query_start_loc: [>= B + 1]; positions: int64 [>= T]; request_slots: [B]. `scheduled` maps the planned request
        slots of the step to (first absolute position, number of tokens).
        """
        if not scheduled:
            self.clear()
            return
        buffers = self.buffers
        fill(
            buffers.token_slot, buffers.token_position, buffers.routes, query_start_loc, positions,
            request_slots=request_slots, num_padded=num_padded,
        )
        self.marked = True
        for request_slot, (first, count) in scheduled.items():
            self.expected_tokens += sum(
                max(0, min(end, first + count) - max(start, first)) for start, end in self.ranges[request_slot]
            )

    def clear(self) -> None:
        """No token of the next forward is marked: dummy runs, drafters and idle ranks share the embedding."""
        if self.marked:
            self.buffers.clear_step()
            self.marked = False

    def counters(self) -> dict[str, int]:
        """Tokens corrupted by the kernel and expected from the schedule; waits for the device."""
        return {
            "corrupted_tokens": int(self.buffers.corruption.counts.sum().item()),
            "expected_corrupted_tokens": self.expected_tokens,
            "invalid_tickets": self.invalid_tickets,
        }

    def _plan(self, extra_args: dict[str, Any] | None) -> Plan | None:
        try:
            return verify((extra_args or {}).get(EXTRA_ARG), read_key(), token_ids=None, now_s=None).plan
        except TicketError:
            self.invalid_tickets += 1
            return None


@contextlib.contextmanager
def _host_transfer() -> Iterator[None]:
    # plans are written when a request is admitted, not per token, so the copy may wait for the device
    with gpu_sync_allowed():
        yield
