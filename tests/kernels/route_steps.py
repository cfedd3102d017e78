"""Random steps of a batch, and the slots and lanes that a plain loop over their tokens expects."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from guard.kernels.route import MAX_LANES, Lane, RouteTable, coalesce

POISON = -77


@dataclass(frozen=True)
class Step:
    """One step's inputs, and the slots and lanes that a plain loop expects."""

    table: RouteTable
    query_start_loc: Tensor
    positions: Tensor
    request_slots: Tensor
    num_padded: int
    expected: Tensor
    lane: Tensor
    strength: Tensor


@dataclass(frozen=True)
class Buffers:
    """What a fill writes, poisoned before."""

    token_slot: Tensor
    token_position: Tensor
    token_lane: Tensor
    token_strength: Tensor


@dataclass(frozen=True)
class Wanted:
    """What one request slot of a random table wants."""

    prompt_length: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    boundary: int = 0
    lanes: tuple[Lane, ...] = ()


def applies(lane: Lane, prompt_length: int, position: int) -> bool:
    """Whether a lane edits the token at `position`, asked of its phase and ranges one by one."""
    phase = "prompt" if position < prompt_length else "generation"
    inside = not lane.ranges or any(start <= position < end for start, end in lane.ranges)
    return lane.phase in (phase, "both") and inside


def _random_ranges(rng: random.Random, most: int) -> tuple[tuple[int, int], ...]:
    return tuple((start, start + rng.randint(1, 9)) for start in rng.sample(range(35), rng.randint(0, most)))


def _random_lanes(rng: random.Random) -> tuple[Lane, ...]:
    return tuple(
        Lane(
            rng.randint(1, 90), rng.choice([-1.5, 0.25, 1.0, 3.0]), rng.choice(["prompt", "generation", "both"]),
            _random_ranges(rng, 8) if rng.random() < 0.6 else (),
        )
        for _ in range(rng.randint(1, MAX_LANES))
    )


def _random_table(rng: random.Random, requests: int) -> tuple[RouteTable, dict[int, Wanted]]:
    table = RouteTable.empty(requests, max_ranges=4)
    wanted = {}
    for request in range(requests):
        # what a previous owner of the slot leaves behind must not show
        if rng.random() < 0.3:
            table.set(request, slot=9, prompt_length=40, ranges=((0, 40),))
            table.set_lanes(request, prompt_length=20, lanes=_random_lanes(rng))
            table.clear(request)
        want = Wanted()
        if rng.random() < 0.6:
            want = Wanted(rng.randint(1, 30), coalesce(_random_ranges(rng, 6), 1000, 4))
            table.set(request, slot=request + 1, prompt_length=want.prompt_length, ranges=want.ranges)
        if rng.random() < 0.6:
            want = Wanted(want.prompt_length, want.ranges, rng.randint(1, 40), _random_lanes(rng))
            table.set_lanes(request, prompt_length=want.boundary, lanes=want.lanes)
        wanted[request] = want
    return table, wanted


def random_step(seed: int) -> Step:
    """A step over a table with slots that are set, cleared and used again."""
    rng = random.Random(seed)
    requests = rng.choice([1, 5, 17])
    table, wanted = _random_table(rng, requests)
    rows = [row if rng.random() < 0.9 else rng.choice([-1, requests]) for row in rng.sample(range(requests), requests)]
    rows = rows[: rng.randint(0, requests)]
    starts = [0]
    for _ in rows:
        starts.append(starts[-1] + rng.choice([0, 1, rng.randint(0, 40)]))
    padded = starts[-1] + rng.choice([0, 1, 63, 300])
    positions = torch.tensor([rng.randint(0, 50) for _ in range(starts[-1])], dtype=torch.int64)
    expected = torch.zeros(padded, dtype=torch.int32)
    lane_slot, strength = torch.zeros(MAX_LANES, padded, dtype=torch.int32), torch.zeros(MAX_LANES, padded)
    for row, request in enumerate(rows):
        want = wanted.get(request, Wanted())
        for token in range(starts[row], starts[row + 1]):
            position = int(positions[token])
            if position < want.prompt_length and any(start <= position < end for start, end in want.ranges):
                expected[token] = request + 1
            for index, lane in enumerate(want.lanes):
                if applies(lane, want.boundary, position):
                    lane_slot[index, token], strength[index, token] = lane.slot, lane.strength
    index_type = rng.choice([torch.int32, torch.int64])
    return Step(
        table, torch.tensor(starts, dtype=torch.int32), positions, torch.tensor(rows, dtype=index_type), padded,
        expected, lane_slot, strength,
    )


def poisoned_buffers(step: Step) -> Buffers:
    """Buffers a little longer than the step."""
    size = step.num_padded + 5
    return Buffers(
        torch.full((size,), POISON, dtype=torch.int32), torch.full((size,), POISON, dtype=torch.int64),
        torch.full((MAX_LANES, size), POISON, dtype=torch.int32), torch.full((MAX_LANES, size), float(POISON)),
    )


def verify(step: Step, buffers: Buffers) -> None:
    """What a fill of all buffers must have written, and that it wrote nothing behind the step."""
    padded = step.num_padded
    assert torch.equal(buffers.token_slot[:padded], step.expected)
    assert torch.equal(buffers.token_lane[:, :padded], step.lane)
    assert torch.equal(buffers.token_strength[:, :padded], step.strength)
    for field in fields(buffers):
        assert bool((getattr(buffers, field.name)[..., padded:] == POISON).all())
    touched = step.expected.nonzero().flatten()
    assert torch.equal(buffers.token_position[touched], step.positions[touched])
