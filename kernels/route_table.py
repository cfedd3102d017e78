"""What every live request wants of its tokens: the tables that `guard.kernels.route.fill` reads, and their words.

Tables are indexed by **request slot**, an index that a request keeps while it lives: in Model Runner V2 the request
state index (`idx_mapping` gives it per batch row), in the V1 runner any index that the caller assigns per request id.
Positions are absolute and ranges half-open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

MAX_RANGES = 64
MAX_LANES = 4
MAX_LANE_RANGES = 8

LanePhase = Literal["prompt", "generation", "both"]

# bits of RouteTable.lane_phase
_PHASE_BITS: dict[LanePhase, int] = {"prompt": 1, "generation": 2, "both": 3}


@dataclass(frozen=True, slots=True)
class Lane:
    """One activation edit of a request: a bank slot, its strength, and the positions that it applies to.

    `prompt` are the positions below the prompt length, `generation` those from there on. Without `ranges` it applies to
    all positions of its phase.
    """

    slot: int
    strength: float
    phase: LanePhase
    ranges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Corruption slot, lanes of edits and positions of R request slots.

    Corruption: slot, range_count int32 [R]; prompt_length int64 [R]; ranges int64 [R, max_ranges, 2].
    Edits: lane_slot, lane_phase (bit 0 prompt, bit 1 generation), lane_range_count int32 [R, 4]; lane_strength float32
    [R, 4]; lane_ranges int64 [R, 4, 8, 2]; lane_prompt_length int64 [R], which may differ from the corruption's. Lanes
    are packed: lane 0 is empty only where all are.
    `planned` holds, on the host, the request slots that have either: a step without any needs no table look-up.
    """

    slot: Tensor
    prompt_length: Tensor
    range_count: Tensor
    ranges: Tensor
    lane_slot: Tensor
    lane_strength: Tensor
    lane_phase: Tensor
    lane_range_count: Tensor
    lane_ranges: Tensor
    lane_prompt_length: Tensor
    planned: set[int] = field(default_factory=set)

    @classmethod
    def empty(
        cls, num_requests: int, device: torch.device | str = "cpu", max_ranges: int = MAX_RANGES,
    ) -> RouteTable:
        """A table in which no request has a plan."""

        def zeros(*shape: int, of: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(num_requests, *shape, dtype=of, device=device)

        return cls(
            slot=zeros(), prompt_length=zeros(of=torch.int64), range_count=zeros(),
            ranges=zeros(max_ranges, 2, of=torch.int64), lane_slot=zeros(MAX_LANES),
            lane_strength=zeros(MAX_LANES, of=torch.float32), lane_phase=zeros(MAX_LANES),
            lane_range_count=zeros(MAX_LANES), lane_ranges=zeros(MAX_LANES, MAX_LANE_RANGES, 2, of=torch.int64),
            lane_prompt_length=zeros(of=torch.int64),
        )

    @property
    def num_requests(self) -> int:
        return self.slot.shape[0]

    @property
    def max_ranges(self) -> int:
        return self.ranges.shape[1]

    def set(self, request: int, *, slot: int, prompt_length: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Write the corruption of one request slot; call it outside the step's hot path. Raises ValueError."""
        self._check_request(request)
        if slot < 1:
            raise ValueError(f"a plan needs a corruption slot >= 1, got {slot}")
        if len(ranges) > self.max_ranges:
            raise ValueError(f"{len(ranges)} ranges exceed the limit of {self.max_ranges}; coalesce() them first")
        _check_ranges(ranges)
        self.slot[request].fill_(0)
        if ranges:
            host = torch.tensor(ranges, dtype=torch.int64)
            self.ranges[request, : len(ranges)].copy_(host)
        self.range_count[request].fill_(len(ranges))
        self.prompt_length[request].fill_(prompt_length)
        self.slot[request].fill_(slot)
        self.planned.add(request)

    def set_lanes(self, request: int, *, prompt_length: int, lanes: Sequence[Lane]) -> None:
        """Write the edits of one request slot, lane 0 first; call it outside the step's hot path. Raises ValueError."""
        self._check_request(request)
        if not 1 <= len(lanes) <= MAX_LANES:
            raise ValueError(f"a plan of edits has 1 to {MAX_LANES} lanes, got {len(lanes)}")
        for lane in lanes:
            _check_lane(lane)
        absent = [0] * (MAX_LANES - len(lanes))
        bounds = torch.zeros(MAX_LANES, MAX_LANE_RANGES, 2, dtype=torch.int64)
        for index, lane in enumerate(lanes):
            if lane.ranges:
                bounds[index, : len(lane.ranges)] = torch.tensor(lane.ranges, dtype=torch.int64)
        self.lane_slot[request].fill_(0)
        self.lane_ranges[request].copy_(bounds)
        self.lane_range_count[request].copy_(torch.tensor([len(lane.ranges) for lane in lanes] + absent))
        self.lane_phase[request].copy_(torch.tensor([_PHASE_BITS[lane.phase] for lane in lanes] + absent))
        self.lane_strength[request].copy_(torch.tensor([float(lane.strength) for lane in lanes] + absent))
        self.lane_prompt_length[request].fill_(prompt_length)
        self.lane_slot[request].copy_(torch.tensor([lane.slot for lane in lanes] + absent))
        self.planned.add(request)

    def clear(self, request: int) -> None:
        """Forget the corruption and the edits of one request slot; free when it had none."""
        self._check_request(request)
        if request in self.planned:
            self.slot[request].fill_(0)
            self.lane_slot[request].fill_(0)
            self.planned.discard(request)

    def _check_request(self, request: int) -> None:
        if not 0 <= request < self.num_requests:
            raise ValueError(f"request slot {request} is outside 0..{self.num_requests - 1}")


def coalesce(
    ranges: Sequence[tuple[int, int]], prompt_length: int, limit: int = MAX_RANGES,
) -> tuple[tuple[int, int], ...]:
    """Sorted, disjoint ranges inside [0, prompt_length), at most `limit`: the narrowest gaps are closed first.

    Closing a gap corrupts more tokens, never fewer: enforcement does not depend on the number of spans.
    """
    merged: list[tuple[int, int]] = []
    for start, end in sorted((max(0, start), min(end, prompt_length)) for start, end in ranges):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    while len(merged) > max(1, limit):
        gap = min(range(len(merged) - 1), key=lambda index: merged[index + 1][0] - merged[index][1])
        merged[gap : gap + 2] = [(merged[gap][0], merged[gap + 1][1])]
    return tuple(merged)


def covered(lane: Lane, prompt_length: int, first: int, count: int) -> int:
    """How many of the positions [first, first + count) the lane applies to."""
    low = max(first, prompt_length if lane.phase == "generation" else 0)
    high = min(first + count, prompt_length) if lane.phase == "prompt" else first + count
    if not lane.ranges:
        return max(0, high - low)
    disjoint = coalesce(lane.ranges, high, limit=len(lane.ranges))
    return sum(max(0, end - max(start, low)) for start, end in disjoint)


def _check_lane(lane: Lane) -> None:
    if lane.slot < 1:
        raise ValueError(f"a lane needs an edit slot >= 1, got {lane.slot}")
    if not math.isfinite(lane.strength):
        raise ValueError("the strength of a lane must be finite")
    if lane.phase not in get_args(LanePhase):
        raise ValueError(f"the phase of a lane must be one of {', '.join(get_args(LanePhase))}, got {lane.phase!r}")
    if len(lane.ranges) > MAX_LANE_RANGES:
        raise ValueError(f"{len(lane.ranges)} ranges exceed the limit of {MAX_LANE_RANGES} of a lane")
    _check_ranges(lane.ranges)


def _check_ranges(ranges: Sequence[tuple[int, int]]) -> None:
    if any(not 0 <= start < end for start, end in ranges):
        raise ValueError("every range must be (start, end) with 0 <= start < end")
