"""What both model runners share: plans of live requests in device tables, and the slots of every step's tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from guard.engine.ops import EngineBuffers, mark_lanes
from guard.engine.tickets import VerifiedTickets
from guard.errors import TicketError
from guard.kernels.route import Lane, coalesce, covered, fill
from guard.packs.bank import EditSlots
from guard.plan import EditLane, Plan


@dataclass(frozen=True, slots=True)
class LiveLane:
    """A lane of a running request: the pack it refers to, and at how many sites of this rank it applies."""

    pack: str
    lane: Lane
    num_sites: int


@dataclass(frozen=True, slots=True)
class LiveEdits:
    """The edits of a running request; `prompt_length` is where the phase `generation` begins."""

    prompt_length: int
    lanes: tuple[LiveLane, ...]


@dataclass(slots=True)
class PlanRouter:
    """Keeps the plans of all live requests in `buffers` and marks the tokens of each step.

    A request slot is an index below the number of requests that can be in one batch; request slot r uses corruption
    slot r + 1. `expected_tokens` and `expected_edited` are counted on the host from the schedule alone, to be compared
    with what the kernels counted on the device.
    """

    buffers: EngineBuffers
    tickets: VerifiedTickets
    edit_slots: EditSlots | None = None
    ranges: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    edits: dict[int, LiveEdits] = field(default_factory=dict)
    expected_tokens: int = 0
    expected_edited: int = 0
    invalid_tickets: int = 0
    marked: bool = False

    @property
    def planned(self) -> bool:
        """Whether any live request has something for the kernels to do."""
        return bool(self.ranges or self.edits)

    def has_plan(self, request_slot: int) -> bool:
        """Whether this one has."""
        return request_slot in self.ranges or request_slot in self.edits

    def admit(self, request_slot: int, sampling_params: Any) -> None:
        """Put the plan of a request into its slot; the slot keeps nothing of its previous owner.

        A request without a valid ticket, or whose edits are not resident, gets nothing: the logits processor lets it
        say nothing.
        """
        self.release(request_slot)
        try:
            plan = self.tickets.of(sampling_params).plan
        except TicketError:
            self.invalid_tickets += 1
            return
        with _host_transfer():
            self._admit_corruption(request_slot, plan)
            self._admit_edits(request_slot, plan)

    def release(self, request_slot: int) -> None:
        """The request of this slot has left the batch."""
        corrupted = self.ranges.pop(request_slot, None) is not None
        live = self.edits.pop(request_slot, None)
        if corrupted or live is not None:
            self.buffers.routes.clear(request_slot)
        if corrupted:
            self.buffers.corruption.clear(request_slot + 1)
        if live is not None and self.edit_slots is not None:
            for lane in live.lanes:
                self.edit_slots.drop(lane.pack)

    def mark(
        self, query_start_loc: Tensor, positions: Tensor, request_slots: Tensor, num_padded: int,
        scheduled: Mapping[int, tuple[int, int]],
    ) -> None:
        """Fill slots, lanes and positions of a step.

        query_start_loc: [>= B + 1]; positions: int64 [>= T]; request_slots: [B]. `scheduled` maps the planned request
        slots of the step to (first absolute position, number of tokens).
        """
        if not scheduled:
            self.clear()
            return
        buffers = self.buffers
        fill(
            buffers.token_slot, buffers.token_position, buffers.routes, query_start_loc, positions,
            request_slots=request_slots, num_padded=num_padded, token_lane=buffers.token_lane,
            token_strength=buffers.token_strength,
        )
        self.marked = True
        mark_lanes(any(request_slot in self.edits for request_slot in scheduled))
        for request_slot, (first, count) in scheduled.items():
            self.expected_tokens += sum(
                max(0, min(end, first + count) - max(start, first))
                for start, end in self.ranges.get(request_slot, ())
            )
            live = self.edits.get(request_slot)
            if live is not None:
                self.expected_edited += sum(
                    each.num_sites * covered(each.lane, live.prompt_length, first, count) for each in live.lanes
                )

    def clear(self) -> None:
        """No token of the next forward is marked: dummy runs, drafters and idle ranks share the layers."""
        if self.marked:
            self.buffers.clear_step()
            mark_lanes(False)
            self.marked = False

    def counters(self) -> dict[str, int]:
        """Tokens touched by the kernels and expected from the schedule; waits for the device."""
        slots = self.edit_slots.counters() if self.edit_slots is not None else {}
        return {
            "corrupted_tokens": int(self.buffers.corruption.counts.sum().item()),
            "expected_corrupted_tokens": self.expected_tokens,
            "edited_tokens": slots.get("edited_tokens", 0),
            "expected_edited_tokens": self.expected_edited,
            "resident_edits": slots.get("resident", 0),
            "invalid_tickets": self.invalid_tickets,
        }

    def _admit_corruption(self, request_slot: int, plan: Plan) -> None:
        corruption = plan.corruption
        if corruption is None:
            return
        ranges = coalesce(corruption.ranges, plan.prompt_length, self.buffers.routes.max_ranges)
        if not ranges:
            return
        self.buffers.corruption.set(
            request_slot + 1, kind=corruption.kind, dims=corruption.dims, rho=corruption.rho, seed=corruption.seed
        )
        self.buffers.routes.set(request_slot, slot=request_slot + 1, prompt_length=plan.prompt_length, ranges=ranges)
        self.ranges[request_slot] = ranges

    def _admit_edits(self, request_slot: int, plan: Plan) -> None:
        if not plan.edits or self.edit_slots is None:
            return
        found = [self._live_lane(edit, self.edit_slots) for edit in plan.edits]
        lanes = tuple(each for each in found if each is not None)
        if len(lanes) != len(found):
            return
        for each in lanes:
            self.edit_slots.acquire(each.pack)
        self.buffers.routes.set_lanes(
            request_slot, prompt_length=plan.phase_boundary, lanes=[each.lane for each in lanes]
        )
        self.edits[request_slot] = LiveEdits(plan.phase_boundary, lanes)

    @staticmethod
    def _live_lane(edit: EditLane, slots: EditSlots) -> LiveLane | None:
        slot = slots.slot_of(edit.pack)
        if slot is None:
            return None
        return LiveLane(edit.pack, Lane(slot, edit.strength, edit.phase), slots.sites_of(edit.pack))


@contextlib.contextmanager
def _host_transfer() -> Iterator[None]:
    # plans are written when a request is admitted, not per token, so the copy may wait for the device
    with gpu_sync_allowed():
        yield
