"""Which corruption slot and which edit lanes every token of a step carries: one fill per step, torch reference.

A step has B batch rows; row b holds the tokens query_start_loc[b] .. query_start_loc[b+1] - 1. With r the request slot
of the row of t (see `guard.kernels.route_table`):

    token_slot[t]    = slot[r]  if position[t] < prompt_length[r] and position[t] lies in one of the ranges of r, else 0
    token_lane[l, t] = lane_slot[r, l]  if position[t] lies in the lane's phase and, where the lane has ranges, in one
                       of them, else 0; token_strength[l, t] goes with it

Tokens at or behind query_start_loc[B] up to the padded size get slot 0 and no lanes. The answer depends on absolute
positions only: chunked prefill and recompute after preemption cannot change it, and positions at or behind the prompt
length (output tokens, whatever phase replays them) are never corrupted.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guard.kernels.route_table import (
    MAX_LANE_RANGES,
    MAX_LANES,
    MAX_RANGES,
    Lane,
    LanePhase,
    RouteTable,
    coalesce,
    covered,
)

__all__ = [
    "MAX_LANES", "MAX_LANE_RANGES", "MAX_RANGES", "Lane", "LanePhase", "RouteTable", "coalesce", "covered", "fill",
    "fill_reference",
]

Backend = Literal["auto", "torch", "triton"]


def fill(
    token_slot: Tensor, token_position: Tensor, table: RouteTable, query_start_loc: Tensor, positions: Tensor,
    *, request_slots: Tensor, num_padded: int, token_lane: Tensor | None = None, token_strength: Tensor | None = None,
    backend: Backend = "auto",
) -> None:
    """Write slot, position and lanes of every token of a step into the persistent buffers.

    token_slot: int32 [C], token_position: int64 [C], C >= num_padded; token_lane: int32 [4, C] and token_strength:
    float32 [4, C], given together or not at all. Entries behind num_padded keep their value.
    query_start_loc: int32 or int64 [>= B + 1], B = len(request_slots); positions: int64 [>= number of real tokens].
    request_slots: int32 or int64 [B], batch row -> request slot; a value outside the table has no plan.
    No synchronisation on CUDA. Raises ValueError on wrong shapes.
    """
    _check(token_slot, token_position, query_start_loc, positions, request_slots, num_padded)
    _check_lanes(token_lane, token_strength, num_padded)
    if not table.planned or num_padded == 0 or request_slots.shape[0] == 0:
        token_slot[:num_padded].zero_()
        _zero_lanes(token_lane, token_strength, num_padded)
        return
    if backend == "triton" or (backend == "auto" and token_slot.is_cuda):
        from guard.kernels.route_triton import launch_fill  # noqa: PLC0415 - triton is imported only where it runs

        launch = launch_fill
    else:
        launch = fill_reference
    launch(
        token_slot, token_position, table, query_start_loc, positions, request_slots, num_padded, token_lane,
        token_strength,
    )


def fill_reference(
    token_slot: Tensor, token_position: Tensor, table: RouteTable, query_start_loc: Tensor, positions: Tensor,
    request_slots: Tensor, num_padded: int, token_lane: Tensor | None = None, token_strength: Tensor | None = None,
) -> None:
    """The same as `fill` in plain torch; looks only at the tokens of requests that have a plan."""
    token_slot[:num_padded].zero_()
    token_position[:num_padded].zero_()
    _zero_lanes(token_lane, token_strength, num_padded)
    batch = request_slots.shape[0]
    start = query_start_loc[: batch + 1].long().clamp(max=min(num_padded, positions.shape[0]))
    known = (request_slots >= 0) & (request_slots < table.num_requests)
    request = request_slots.long().clamp(0, table.num_requests - 1)
    wanted = table.slot[request] > 0
    if token_lane is not None:
        wanted |= table.lane_slot[request, 0] > 0
    planned = (known & wanted).nonzero().flatten()
    length = (start[planned + 1] - start[planned]).clamp(min=0)
    if planned.numel() == 0 or int(length.sum()) == 0:
        return
    first = torch.repeat_interleave(start[planned] - (length.cumsum(0) - length), length)
    token = first + torch.arange(first.shape[0], device=first.device)
    owner = torch.repeat_interleave(request[planned], length)
    where = positions[token].long()
    token_position[token] = where
    hit = _inside(where, table.ranges[owner], table.range_count[owner])
    hit &= (where >= 0) & (where < table.prompt_length[owner])
    token_slot[token] = torch.where(hit, table.slot[owner], 0)
    if token_lane is not None and token_strength is not None:
        slot, strength = _lanes(where, owner, table)
        token_lane[:, token] = slot.T
        token_strength[:, token] = strength.T


def _lanes(where: Tensor, owner: Tensor, table: RouteTable) -> tuple[Tensor, Tensor]:
    """Slot int32 and strength float32 [n, 4] of tokens at `where` [n] of the request slots `owner` [n]."""
    phase = torch.where(where < table.lane_prompt_length[owner], 1, 2)
    count = table.lane_range_count[owner]
    hit = (count == 0) | _inside(where[:, None], table.lane_ranges[owner], count)
    hit &= (table.lane_phase[owner] & phase[:, None] != 0) & (table.lane_slot[owner] > 0) & (where[:, None] >= 0)
    return torch.where(hit, table.lane_slot[owner], 0), torch.where(hit, table.lane_strength[owner], 0.0)


def _inside(where: Tensor, bounds: Tensor, count: Tensor) -> Tensor:
    """Whether `where` [...] lies in one of the first `count` [...] ranges of `bounds` [..., M, 2]."""
    inside = (where[..., None] >= bounds[..., 0]) & (where[..., None] < bounds[..., 1])
    inside &= torch.arange(bounds.shape[-2], device=bounds.device) < count[..., None]
    return inside.any(dim=-1)


def _zero_lanes(token_lane: Tensor | None, token_strength: Tensor | None, num_padded: int) -> None:
    if token_lane is not None and token_strength is not None:
        token_lane[:, :num_padded].zero_()
        token_strength[:, :num_padded].zero_()


def _check(
    token_slot: Tensor, token_position: Tensor, query_start_loc: Tensor, positions: Tensor, request_slots: Tensor,
    num_padded: int,
) -> None:
    if token_slot.dtype != torch.int32 or token_position.dtype != torch.int64:
        raise ValueError(f"buffers must be int32 and int64, got {token_slot.dtype} and {token_position.dtype}")
    if min(token_slot.shape[0], token_position.shape[0]) < num_padded:
        raise ValueError(f"buffers hold {token_slot.shape[0]} tokens, the step is padded to {num_padded}")
    if query_start_loc.shape[0] < request_slots.shape[0] + 1:
        raise ValueError(f"query_start_loc has {query_start_loc.shape[0]} entries for {request_slots.shape[0]} rows")
    if positions.dim() != 1:
        raise ValueError(f"positions must be one-dimensional, got {tuple(positions.shape)}")


def _check_lanes(token_lane: Tensor | None, token_strength: Tensor | None, num_padded: int) -> None:
    if token_lane is None and token_strength is None:
        return
    if token_lane is None or token_strength is None:
        raise ValueError("token_lane and token_strength are given together or not at all")
    for name, buffer, dtype in (
        ("token_lane", token_lane, torch.int32), ("token_strength", token_strength, torch.float32),
    ):
        fits = buffer.dim() == 2 and buffer.shape[0] == MAX_LANES and buffer.shape[1] >= num_padded
        if not fits or buffer.dtype != dtype or (buffer.shape[1] and buffer.stride(1) != 1):
            raise ValueError(
                f"{name} must be {dtype} [{MAX_LANES}, >= {num_padded}] with contiguous rows, "
                f"got {tuple(buffer.shape)} {buffer.dtype}"
            )
