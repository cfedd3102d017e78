"""Plans of live requests in device tables, and the marks of every step."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="vLLM is not installed")

from guard.engine.ops import EngineBuffers
from guard.engine.routing import PlanRouter
from guard.engine.tickets import VerifiedTickets
from guard.plan import Corruption, Plan
from guard.ticket import read_key, sign

LENGTH = 40


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ticket key of this process."""
    monkeypatch.setenv("GUARD_TICKET_KEY", "k" * 64)


def router() -> PlanRouter:
    """Room for four requests."""
    return PlanRouter(EngineBuffers.allocate(128, 4, torch.device("cpu")), VerifiedTickets(read_key()))


def params(*ranges: tuple[int, int], **parts: Any) -> Any:
    """Sampling params with a ticket for a corruption of `ranges`."""
    corruption = Corruption(kind="flip_sign", seed=1, ranges=ranges) if ranges else None
    plan = Plan(tenant_index=0, policy_version="1", prompt_length=LENGTH, corruption=corruption, **parts)
    return SimpleNamespace(extra_args={"guard": sign(plan, "s", [1] * LENGTH, read_key(), now_s=time.time())})


def step(marks: PlanRouter, rows: list[tuple[int, int, int]]) -> list[list[int]]:
    """One step of (request slot, first position, tokens) rows; the slots of every row's tokens."""
    starts = torch.tensor([0, *[count for _, _, count in rows]]).cumsum(0)
    positions = torch.cat([torch.arange(first, first + count) for _, first, count in rows])
    slots = torch.tensor([slot for slot, _, _ in rows], dtype=torch.int32)
    scheduled = {slot: (first, count) for slot, first, count in rows if slot in marks.ranges}
    marks.mark(starts, positions, slots, marks.buffers.token_slot.shape[0], scheduled)
    found = marks.buffers.token_slot.tolist()
    return [found[starts[row] : starts[row + 1]] for row in range(len(rows))]


def test_only_planned_positions_of_the_right_row_are_marked() -> None:
    marks = router()
    marks.admit(2, params((3, 5)))
    marks.admit(1, params())
    assert step(marks, [(1, 0, 6), (2, 0, 6)]) == [[0] * 6, [0, 0, 0, 3, 3, 0]]
    assert marks.expected_tokens == 2
    assert step(marks, [(2, LENGTH, 3)]) == [[0, 0, 0]]
    assert marks.expected_tokens == 2


def test_a_slot_keeps_nothing_of_its_previous_owner() -> None:
    marks = router()
    marks.admit(0, params((0, 4)))
    marks.admit(0, params())
    assert step(marks, [(0, 0, 4)]) == [[0] * 4]
    marks.admit(0, params((0, 4)))
    marks.release(0)
    assert step(marks, [(0, 0, 4)]) == [[0] * 4]
    assert marks.buffers.corruption.kind.eq(0).all()


def test_marks_are_gone_after_clear() -> None:
    marks = router()
    marks.admit(0, params((0, 4)))
    assert step(marks, [(0, 0, 4)]) == [[1] * 4]
    marks.clear()
    assert marks.buffers.token_slot.eq(0).all()


@pytest.mark.parametrize("extra", [None, {}, {"guard": "forged"}, {"guard": 7}])
def test_a_request_without_a_ticket_is_counted_and_not_marked(extra: Any) -> None:
    marks = router()
    marks.admit(0, SimpleNamespace(extra_args=extra))
    assert marks.ranges == {}
    assert marks.counters()["invalid_tickets"] == 1


@settings(max_examples=60, deadline=None)
@given(
    edges=st.lists(st.integers(0, LENGTH), min_size=2, max_size=8, unique=True),
    chunks=st.lists(st.integers(1, 15), min_size=1, max_size=10),
)
def test_marks_of_all_chunks_together_are_the_plan(edges: list[int], chunks: list[int]) -> None:
    ordered = sorted(edges)
    ranges = tuple(zip(ordered[0::2], ordered[1::2], strict=False))
    marks = router()
    marks.admit(3, params(*ranges))
    first, seen = 0, []
    for count in [*chunks, LENGTH]:
        seen += step(marks, [(0, 5, 2), (3, first, count)])[1]
        first += count
    planned = [any(start <= position < end for start, end in ranges) for position in range(first)]
    assert [slot != 0 for slot in seen] == planned
    assert marks.expected_tokens == sum(planned)
