"""Per-token corruption slots: the reference and the Triton kernel against a plain loop."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from guard.kernels.route import RouteTable, coalesce, fill

POISON = -77


@dataclass(frozen=True)
class Step:
    """One step's inputs and the slots that a plain loop expects."""

    table: RouteTable
    query_start_loc: Tensor
    positions: Tensor
    request_slots: Tensor
    num_padded: int
    expected: Tensor


def _step(seed: int) -> Step:
    rng = random.Random(seed)
    requests = rng.choice([1, 5, 17])
    table = RouteTable.empty(requests, max_ranges=4)
    plans: dict[int, tuple[int, tuple[tuple[int, int], ...]]] = {}
    for request in range(requests):
        if rng.random() < 0.7:
            raw = [(start, start + rng.randint(1, 5)) for start in rng.sample(range(30), rng.randint(0, 6))]
            plans[request] = rng.randint(1, 30), coalesce(raw, 1000, 4)
            table.set(request, slot=request + 1, prompt_length=plans[request][0], ranges=plans[request][1])
    rows = [row if rng.random() < 0.9 else rng.choice([-1, requests]) for row in rng.sample(range(requests), requests)]
    rows = rows[: rng.randint(0, requests)]
    starts = [0]
    for _ in rows:
        starts.append(starts[-1] + rng.choice([0, 1, rng.randint(0, 40)]))
    padded = starts[-1] + rng.choice([0, 1, 63, 300])
    positions = torch.tensor([rng.randint(0, 40) for _ in range(starts[-1])], dtype=torch.int64)
    expected = torch.zeros(padded, dtype=torch.int32)
    for row, request in enumerate(rows):
        for token in range(starts[row], starts[row + 1]):
            length, ranges = plans.get(request, (0, ()))
            position = int(positions[token])
            if position < length and any(start <= position < end for start, end in ranges):
                expected[token] = request + 1
    index_type = rng.choice([torch.int32, torch.int64])
    request_slots = torch.tensor(rows, dtype=index_type)
    return Step(table, torch.tensor(starts, dtype=torch.int32), positions, request_slots, padded, expected)


def _buffers(step: Step) -> tuple[Tensor, Tensor]:
    size = step.num_padded + 5
    return torch.full((size,), POISON, dtype=torch.int32), torch.full((size,), POISON, dtype=torch.int64)


def _verify(step: Step, token_slot: Tensor, token_position: Tensor) -> None:
    assert torch.equal(token_slot[: step.num_padded], step.expected)
    assert bool((token_slot[step.num_padded :] == POISON).all())
    assert bool((token_position[step.num_padded :] == POISON).all())
    touched = step.expected.nonzero().flatten()
    assert torch.equal(token_position[touched], step.positions[touched])


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_fill_agrees_with_a_plain_loop(seed: int) -> None:
    step = _step(seed)
    token_slot, token_position = _buffers(step)
    fill(
        token_slot, token_position, step.table, step.query_start_loc, step.positions, request_slots=step.request_slots,
        num_padded=step.num_padded,
    )
    _verify(step, token_slot, token_position)


def test_triton_fill_agrees_with_a_plain_loop(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    path = Path(__file__).with_name("interpreted.py")
    spec = importlib.util.spec_from_file_location("interpreted_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    interpreted: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(interpreted)
    steps = [_step(seed) for seed in range(40)]
    cases, options = [], []
    for step in steps:
        token_slot, token_position = _buffers(step)
        table = step.table
        cases.append(
            {
                "token_slot": token_slot, "token_position": token_position, "slot": table.slot,
                "prompt_length": table.prompt_length, "range_count": table.range_count, "ranges": table.ranges,
                "query_start_loc": step.query_start_loc, "positions": step.positions,
                "request_slots": step.request_slots,
            }
        )
        options.append({"planned": sorted(table.planned), "num_padded": step.num_padded})
    for step, result in zip(steps, interpreted.run("fill", cases, options, tmp_path), strict=True):
        _verify(step, result["token_slot"], result["token_position"])


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=5))
def test_chunked_prefill_gives_every_position_the_same_slot(cuts: list[int]) -> None:
    table = RouteTable.empty(2)
    table.set(1, slot=3, prompt_length=50, ranges=((2, 9), (30, 58)))
    slots: list[int] = []
    edges = [0, *sorted(cuts), 60]
    for start, end in zip(edges, edges[1:], strict=False):
        size = end - start
        token_slot, token_position = torch.zeros(size, dtype=torch.int32), torch.zeros(size, dtype=torch.int64)
        fill(
            token_slot, token_position, table, torch.tensor([0, size], dtype=torch.int32), torch.arange(start, end),
            request_slots=torch.tensor([1]), num_padded=size,
        )
        slots += token_slot.tolist()
    # positions from 50 on are output tokens that a preempted request replays
    assert slots == [3 if 2 <= position < 9 or 30 <= position < 50 else 0 for position in range(60)]


def test_cleared_and_reused_request_slots_keep_nothing() -> None:
    table = RouteTable.empty(1)
    table.set(0, slot=2, prompt_length=10, ranges=((0, 10), (12, 13)))
    table.clear(0)
    for ranges, expected in (((), [0, 0, 0]), (((1, 2),), [0, 4, 0])):
        token_slot, token_position = torch.full((3,), 9, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)
        if ranges:
            table.set(0, slot=4, prompt_length=10, ranges=ranges)
        fill(
            token_slot, token_position, table, torch.tensor([0, 3]), torch.arange(3), request_slots=torch.tensor([0]),
            num_padded=3,
        )
        assert token_slot.tolist() == expected


def test_wrong_plans_are_refused() -> None:
    table = RouteTable.empty(2, max_ranges=2)
    for request, slot, ranges in ((2, 1, ((0, 1),)), (0, 0, ((0, 1),)), (0, 1, ((3, 3),)), (0, 1, ((0, 1),) * 3)):
        with pytest.raises(ValueError, match=r"outside|needs|must be|exceed"):
            table.set(request, slot=slot, prompt_length=5, ranges=ranges)
    assert not table.planned


@settings(max_examples=100, deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(-3, 60), st.integers(-3, 60)), max_size=12), length=st.integers(0, 50),
    limit=st.integers(1, 5),
)
def test_coalesce_covers_every_position_with_few_ranges(
    ranges: list[tuple[int, int]], length: int, limit: int
) -> None:
    wanted = {p for start, end in ranges for p in range(max(0, start), min(end, length))}
    result = coalesce(ranges, length, limit)
    assert len(result) <= limit
    assert wanted <= {p for start, end in result for p in range(start, end)}
    assert all(0 <= start < end <= length for start, end in result)
    assert all(left[1] < right[0] for left, right in zip(result, result[1:], strict=False))
    assert {p for start, end in coalesce(ranges, length, 100) for p in range(start, end)} == wanted
