"""Triton kernel of `guard.kernels.route` and its launcher.

One program per block of tokens: a binary search over query_start_loc finds the batch row of each token, so that token
boundaries decided on the device need no word from the host.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from guard.kernels.route import RouteTable

_BLOCK = 256


@triton.jit  # type: ignore[untyped-decorator]
def fill_kernel(  # type: ignore[no-untyped-def]
    token_slot, token_position, query_start_loc, positions, request_slots,
    slot_table, length_table, count_table, range_table,
    batch, num_padded, num_positions, num_requests,
    MAX_RANGES: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
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
    planned = known & (slot > 0)
    where = tl.load(positions + token, mask=planned, other=0).to(tl.int64)
    length = tl.load(length_table + request, mask=planned, other=0)
    count = tl.load(count_table + request, mask=planned, other=0)
    hit = tl.zeros((BLOCK,), dtype=tl.int32)
    for index in range(tl.max(count, axis=0)):
        live = planned & (index < count)
        bound = range_table + (request * MAX_RANGES + index) * 2
        first = tl.load(bound, mask=live, other=0)
        end = tl.load(bound + 1, mask=live, other=0)
        hit = hit | (live & (where >= first) & (where < end)).to(tl.int32)
    touched = planned & (hit != 0) & (where >= 0) & (where < length)
    tl.store(token_slot + token, tl.where(touched, slot, 0), mask=inside)
    tl.store(token_position + token, where, mask=inside)


def launch_fill(
    token_slot: Tensor, token_position: Tensor, table: RouteTable, query_start_loc: Tensor, positions: Tensor,
    request_slots: Tensor, num_padded: int,
) -> None:
    """Launch over `num_padded` tokens; arguments as in `guard.kernels.route.fill`, already checked."""
    batch = request_slots.shape[0]
    fill_kernel[(triton.cdiv(num_padded, _BLOCK),)](
        token_slot, token_position, query_start_loc, positions, request_slots,
        table.slot, table.prompt_length, table.range_count, table.ranges,
        batch, num_padded, positions.shape[0], table.num_requests,
        MAX_RANGES=table.max_ranges, STEPS=batch.bit_length() + 1, BLOCK=_BLOCK,
    )
