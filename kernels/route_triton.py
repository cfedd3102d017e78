"""Triton kernel of `guard.kernels.route` and its launcher.

One program per block of tokens: a binary search over query_start_loc finds the batch row of each token, so that token
boundaries decided on the device need no word from the host.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from guard.kernels.route_table import MAX_LANE_RANGES, MAX_LANES, RouteTable

_BLOCK = 256


@triton.jit  # type: ignore[untyped-decorator]
def fill_kernel(  # type: ignore[no-untyped-def]
    token_slot, token_position, query_start_loc, positions, request_slots,
    slot_table, length_table, count_table, range_table,
    token_lane, token_strength, lane_slot, lane_strength, lane_phase, lane_count, lane_range, lane_length,
    batch, num_padded, num_positions, num_requests, lane_stride, strength_stride,
    MAX_RANGES: tl.constexpr, LANES: tl.constexpr, LANE_RANGES: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = token < num_padded
    total = tl.minimum(tl.load(query_start_loc + batch).to(tl.int64), num_positions)
    real = inside & (token < total)
    # the last row whose start is <= token; rows without tokens share their start with the next one
    low = tl.zeros((BLOCK,), dtype=tl.int32)
    high = tl.zeros((BLOCK,), dtype=tl.int32) + batch
    for _ in range(STEPS):
        middle = (low + high) // 2
        start = tl.load(query_start_loc + middle, mask=real, other=0).to(tl.int64)
        right = start <= token
        low = tl.where(right, middle, low)
        high = tl.where(right, high, middle)
    request = tl.load(request_slots + low, mask=real, other=-1).to(tl.int64)
    known = real & (request >= 0) & (request < num_requests)
    slot = tl.load(slot_table + request, mask=known, other=0)
    corrupted = known & (slot > 0)
    planned = corrupted
    if LANES > 0:
        # lanes are packed: lane 0 tells whether there are any
        steered = known & (tl.load(lane_slot + request * LANES, mask=known, other=0) > 0)
        planned = corrupted | steered
    where = tl.load(positions + token, mask=planned, other=0).to(tl.int64)
    length = tl.load(length_table + request, mask=corrupted, other=0)
    count = tl.load(count_table + request, mask=corrupted, other=0)
    hit = _inside(where, range_table + request * MAX_RANGES * 2, count, corrupted, BLOCK)
    touched = corrupted & (hit != 0) & (where >= 0) & (where < length)
    tl.store(token_slot + token, tl.where(touched, slot, 0), mask=inside)
    tl.store(token_position + token, where, mask=inside)
    if LANES > 0:
        boundary = tl.load(lane_length + request, mask=steered, other=0)
        phase = tl.where(where < boundary, 1, 2)
        for lane in tl.static_range(LANES):
            entry = request * LANES + lane
            edit = tl.load(lane_slot + entry, mask=steered, other=0)
            live = steered & (edit > 0) & (where >= 0)
            live = live & ((tl.load(lane_phase + entry, mask=live, other=0) & phase) != 0)
            bounds = tl.load(lane_count + entry, mask=live, other=0)
            hit = _inside(where, lane_range + entry * LANE_RANGES * 2, bounds, live, BLOCK)
            live = live & ((bounds == 0) | (hit != 0))
            strength = tl.load(lane_strength + entry, mask=live, other=0.0)
            tl.store(token_lane + lane_stride * lane + token, tl.where(live, edit, 0), mask=inside)
            tl.store(token_strength + strength_stride * lane + token, strength, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _inside(where, ranges, count, live, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 where `where` lies in one of the first `count` ranges at `ranges`, for live tokens."""
    hit = tl.zeros((BLOCK,), dtype=tl.int32)
    for index in range(tl.max(count, axis=0)):
        read = live & (index < count)
        first = tl.load(ranges + index * 2, mask=read, other=0)
        end = tl.load(ranges + index * 2 + 1, mask=read, other=0)
        hit = hit | (read & (where >= first) & (where < end)).to(tl.int32)
    return hit


def launch_fill(
    token_slot: Tensor, token_position: Tensor, table: RouteTable, query_start_loc: Tensor, positions: Tensor,
    request_slots: Tensor, num_padded: int, token_lane: Tensor | None = None, token_strength: Tensor | None = None,
) -> None:
    """Launch over `num_padded` tokens; arguments as in `guard.kernels.route.fill`, already checked."""
    batch = request_slots.shape[0]
    fill_kernel[(triton.cdiv(num_padded, _BLOCK),)](
        token_slot, token_position, query_start_loc, positions, request_slots,
        table.slot, table.prompt_length, table.range_count, table.ranges,
        token_lane, token_strength, table.lane_slot, table.lane_strength, table.lane_phase, table.lane_range_count,
        table.lane_ranges, table.lane_prompt_length,
        batch, num_padded, positions.shape[0], table.num_requests,
        0 if token_lane is None else token_lane.stride(0), 0 if token_strength is None else token_strength.stride(0),
        MAX_RANGES=table.max_ranges, LANES=0 if token_lane is None else MAX_LANES, LANE_RANGES=MAX_LANE_RANGES,
        STEPS=batch.bit_length() + 1, BLOCK=_BLOCK,
    )
