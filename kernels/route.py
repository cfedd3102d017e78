"""Which corruption slot every token of a step carries: per-request tables, one fill per step, torch reference.

Tables are indexed by **request slot**, an index that a request keeps while it lives: in Model Runner V2 the request
state index (`idx_mapping` gives it per batch row), in the V1 runner any index that the caller assigns per request id.
A step has B batch rows; row b holds the tokens query_start_loc[b] .. query_start_loc[b+1] - 1.

    token_slot[t] = slot[r]  if position[t] < prompt_length[r] and position[t] lies in one of the ranges of r, else 0

with r the request slot of the row of t. Tokens at or behind query_start_loc[B] up to the padded size get slot 0.
The answer depends on absolute positions only: chunked prefill and recompute after preemption cannot change it, and
positions at or behind the prompt length (output tokens, whatever phase replays them) are never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

MAX_RANGES = 64

Backend = Literal["auto", "torch", "triton"]


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Corruption slot and positions of R request slots.

    slot, range_count: int32 [R]; prompt_length: int64 [R]; ranges: int64 [R, max_ranges, 2], half-open and absolute.
    `planned` holds, on the host, the request slots that have a plan: a step without any needs no table look-up.
    """

    slot: Tensor
    prompt_length: Tensor
    range_count: Tensor
    ranges: Tensor
    planned: set[int] = field(default_factory=set)

    @classmethod
    def empty(
        cls, num_requests: int, device: torch.device | str = "cpu", max_ranges: int = MAX_RANGES,
    ) -> RouteTable:
        """A table in which no request has a plan."""
        return cls(
            slot=torch.zeros(num_requests, dtype=torch.int32, device=device),
            prompt_length=torch.zeros(num_requests, dtype=torch.int64, device=device),
            range_count=torch.zeros(num_requests, dtype=torch.int32, device=device),
            ranges=torch.zeros(num_requests, max_ranges, 2, dtype=torch.int64, device=device),
        )

    @property
    def num_requests(self) -> int:
        return self.slot.shape[0]

    @property
    def max_ranges(self) -> int:
        return self.ranges.shape[1]

    def set(self, request: int, *, slot: int, prompt_length: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Write the plan of one request slot; call it outside the step's hot path. Raises ValueError."""
        self._check_request(request)
        if slot < 1:
            raise ValueError(f"a plan needs a corruption slot >= 1, got {slot}")
        if len(ranges) > self.max_ranges:
            raise ValueError(f"{len(ranges)} ranges exceed the limit of {self.max_ranges}; coalesce() them first")
        if any(not 0 <= start < end for start, end in ranges):
            raise ValueError("every range must be (start, end) with 0 <= start < end")
        self.slot[request].fill_(0)
        if ranges:
            host = torch.tensor(ranges, dtype=torch.int64)
            self.ranges[request, : len(ranges)].copy_(host)
        self.range_count[request].fill_(len(ranges))
        self.prompt_length[request].fill_(prompt_length)
        self.slot[request].fill_(slot)
        self.planned.add(request)

    def clear(self, request: int) -> None:
        """Forget the plan of one request slot; free when it had none."""
        self._check_request(request)
        if request in self.planned:
            self.slot[request].fill_(0)
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


def fill(
    token_slot: Tensor, token_position: Tensor, table: RouteTable, query_start_loc: Tensor, positions: Tensor,
    *, request_slots: Tensor, num_padded: int, backend: Backend = "auto",
) -> None:
    """Write slot and position of every token of a step into the persistent buffers.

    token_slot: int32 [C], token_position: int64 [C], C >= num_padded; entries behind num_padded keep their value.
    query_start_loc: int32 or int64 [>= B + 1], B = len(request_slots); positions: int64 [>= number of real tokens].
    request_slots: int32 or int64 [B], batch row -> request slot; a value outside the table has no plan.
    No synchronisation on CUDA. Raises ValueError on wrong shapes.
    """
    _check(token_slot, token_position, query_start_loc, positions, request_slots, num_padded)
    if not table.planned or num_padded == 0 or request_slots.shape[0] == 0:
        token_slot[:num_padded].zero_()
        return
    if backend == "triton" or (backend == "auto" and token_slot.is_cuda):
        from guard.kernels.route_triton import launch_fill  # noqa: PLC0415 - triton is imported only where it runs

        launch_fill(token_slot, token_position, table, query_start_loc, positions, request_slots, num_padded)
        return
    fill_reference(token_slot, token_position, table, query_start_loc, positions, request_slots, num_padded)


def fill_reference(
    token_slot: Tensor, token_position: Tensor, table: RouteTable, query_start_loc: Tensor, positions: Tensor,
    request_slots: Tensor, num_padded: int,
) -> None:
    """The same as `fill` in plain torch; looks only at the tokens of requests that have a plan."""
    token_slot[:num_padded].zero_()
    token_position[:num_padded].zero_()
    batch = request_slots.shape[0]
    start = query_start_loc[: batch + 1].long().clamp(max=min(num_padded, positions.shape[0]))
    known = (request_slots >= 0) & (request_slots < table.num_requests)
    request = request_slots.long().clamp(0, table.num_requests - 1)
    planned = (known & (table.slot[request] > 0)).nonzero().flatten()
    length = (start[planned + 1] - start[planned]).clamp(min=0)
    if planned.numel() == 0 or int(length.sum()) == 0:
        return
    first = torch.repeat_interleave(start[planned] - (length.cumsum(0) - length), length)
    token = first + torch.arange(first.shape[0], device=first.device)
    owner = torch.repeat_interleave(request[planned], length)
    where = positions[token].long()
    column = torch.arange(table.max_ranges, device=first.device)[None, :]
    bounds = table.ranges[owner]
    inside = (where[:, None] >= bounds[:, :, 0]) & (where[:, None] < bounds[:, :, 1])
    inside &= column < table.range_count[owner][:, None]
    hit = inside.any(dim=1) & (where >= 0) & (where < table.prompt_length[owner])
    token_slot[token] = torch.where(hit, table.slot[owner], 0)
    token_position[token] = where


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
