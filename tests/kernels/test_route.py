"""Per-token corruption slots and edit lanes: the reference and the Triton kernel against a plain loop."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.kernels.route import MAX_LANES, Lane, LanePhase, RouteTable, coalesce, covered, fill
from tests.kernels import interpreted
from tests.kernels.route_steps import POISON, Buffers, Step, applies, poisoned_buffers, random_step, verify


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), with_lanes=st.booleans())
def test_fill_agrees_with_a_plain_loop(seed: int, with_lanes: bool) -> None:
    step = random_step(seed)
    buffers = poisoned_buffers(step)
    fill(
        buffers.token_slot, buffers.token_position, step.table, step.query_start_loc, step.positions,
        request_slots=step.request_slots, num_padded=step.num_padded,
        token_lane=buffers.token_lane if with_lanes else None,
        token_strength=buffers.token_strength if with_lanes else None,
    )
    if with_lanes:
        verify(step, buffers)
    assert torch.equal(buffers.token_slot[: step.num_padded], step.expected)
    assert with_lanes or bool((buffers.token_lane == POISON).all())


def test_triton_fill_agrees_with_a_plain_loop(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    steps = [random_step(seed) for seed in range(40)]
    cases, options = [], []
    for step in steps:
        buffers = poisoned_buffers(step)
        table = {field.name: getattr(step.table, field.name) for field in fields(RouteTable) if field.name != "planned"}
        written = {field.name: getattr(buffers, field.name) for field in fields(Buffers)}
        inputs = {name: getattr(step, name) for name in ("query_start_loc", "positions", "request_slots")}
        cases.append(table | written | inputs)
        options.append({"planned": sorted(step.table.planned), "num_padded": step.num_padded})
    # a fill without lanes is another specialisation of the kernel
    options[-1]["lanes"] = options[-2]["lanes"] = False
    results = interpreted.run("fill", cases, options, tmp_path)
    for step, option, result in zip(steps, options, results, strict=True):
        if option.get("lanes", True):
            verify(step, Buffers(**{field.name: result[field.name] for field in fields(Buffers)}))
        else:
            assert torch.equal(result["token_slot"][: step.num_padded], step.expected)
            assert bool((result["token_lane"] == POISON).all())


def test_a_step_without_plans_clears_what_the_step_before_left() -> None:
    table = RouteTable.empty(2)
    step = Step(
        table, torch.tensor([0, 3]), torch.arange(3), torch.tensor([1]), 4, torch.zeros(4, dtype=torch.int32),
        torch.zeros(MAX_LANES, 4, dtype=torch.int32), torch.zeros(MAX_LANES, 4),
    )
    buffers = poisoned_buffers(step)
    fill(
        buffers.token_slot, buffers.token_position, table, step.query_start_loc, step.positions,
        request_slots=step.request_slots, num_padded=4, token_lane=buffers.token_lane,
        token_strength=buffers.token_strength,
    )
    assert not buffers.token_slot[:4].any()
    assert not buffers.token_lane[:, :4].any()
    assert not buffers.token_strength[:, :4].any()
    assert bool((buffers.token_lane[:, 4:] == POISON).all())


def test_lane_buffers_come_together_and_fit_the_step() -> None:
    slot, position = torch.zeros(8, dtype=torch.int32), torch.zeros(8, dtype=torch.int64)
    lane, strength = torch.zeros(MAX_LANES, 8, dtype=torch.int32), torch.zeros(MAX_LANES, 8)
    wrong = [(lane, None), (None, strength), (lane[:, :3], strength), (lane, strength[:2]), (lane.long(), strength)]
    for token_lane, token_strength in wrong:
        with pytest.raises(ValueError, match="token_lane|token_strength"):
            fill(
                slot, position, RouteTable.empty(1), torch.tensor([0, 4]), torch.arange(4),
                request_slots=torch.tensor([0]), num_padded=4, token_lane=token_lane, token_strength=token_strength,
            )


@settings(max_examples=200, deadline=None)
@given(
    phase=st.sampled_from(["prompt", "generation", "both"]), prompt_length=st.integers(0, 30),
    first=st.integers(0, 40), count=st.integers(0, 25),
    ranges=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=8),
)
def test_covered_counts_the_positions_that_a_lane_applies_to(
    phase: LanePhase, prompt_length: int, first: int, count: int, ranges: list[tuple[int, int]]
) -> None:
    lane = Lane(1, 1.0, phase, tuple((start, start + length) for start, length in ranges))
    expected = sum(applies(lane, prompt_length, position) for position in range(first, first + count))
    assert covered(lane, prompt_length, first, count) == expected


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


def test_wrong_lanes_are_refused_and_change_nothing() -> None:
    table = RouteTable.empty(1)
    good = Lane(1, 1.0, "both")
    wrong: list[list[Lane]] = [
        [], [good] * 5, [good, Lane(0, 1.0, "both")], [Lane(1, float("nan"), "both")],
        [Lane(1, 1.0, "both", ((3, 3),))], [Lane(1, 1.0, "prompt", ((0, 1),) * 9)], [Lane(1, 1.0, "answer")],  # type: ignore[arg-type]
    ]
    for lanes in wrong:
        with pytest.raises(ValueError, match=r"lane|range"):
            table.set_lanes(0, prompt_length=5, lanes=lanes)
    with pytest.raises(ValueError, match="outside"):
        table.set_lanes(1, prompt_length=5, lanes=[good])
    assert not table.planned
    assert not table.lane_slot.any()


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
