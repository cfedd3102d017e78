"""Requests that wait for their packs: in order, without blocking each other, and for no longer than allowed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from guard.errors import ResidencyError
from tests.service.residency.scripted_workers import A, B, C, D, Served, settle


async def test_requests_that_need_a_slot_wait_in_their_order() -> None:
    one = Served(1)
    await one.packs.acquire([A])
    order: list[str] = []

    async def request(digest: str) -> None:
        await one.packs.acquire([digest])
        order.append(digest)
        one.packs.release([digest])

    waiting = [asyncio.create_task(request(digest)) for digest in (B, C, D)]
    await settle()
    assert not order and one.value("guard_residency_waiting", kind="edit") == 3
    one.packs.release([A])
    await asyncio.gather(*waiting)
    assert order == [B, C, D] and one.value("guard_residency_waiting", kind="edit") == 0


async def test_requests_with_several_packs_cannot_block_each_other() -> None:
    one = Served(3)

    async def request(digests: tuple[str, ...]) -> None:
        await one.packs.acquire(digests)
        await asyncio.sleep(0.001)
        one.packs.release(digests)

    pairs = [(A, B), (C, D), (B, C), (D, A)] * 5
    await asyncio.wait_for(asyncio.gather(*map(request, pairs)), 5.0)


async def test_a_plan_that_can_never_fit_is_refused_at_once() -> None:
    one = Served(2, timeout_s=60.0)
    with pytest.raises(ResidencyError, match="more than the engine"):
        await one.packs.acquire([A, B, C])
    await one.packs.acquire([A, A, B])
    with pytest.raises(ResidencyError):
        await Served(0).packs.acquire([A])
    await Served(0).packs.acquire([])


@pytest.mark.parametrize("way", ["timeout", "cancel"])
async def test_who_gives_up_waiting_holds_nothing(way: str) -> None:
    one = Served(1, timeout_s=0.05 if way == "timeout" else 5.0)
    await one.packs.acquire([A])
    given_up = one.begin(B)
    await settle()
    if way == "cancel":
        given_up.cancel()
    with pytest.raises((ResidencyError, asyncio.CancelledError)):
        await given_up
    assert one.value("guard_residency_waiting", kind="edit") == 0
    one.packs.release([A])
    await one.packs.acquire([C])
    assert one.engine.resident == {C}


async def test_a_slot_that_comes_free_while_the_first_gives_up_goes_to_the_next() -> None:
    one = Served(1)
    await one.packs.acquire([A])
    first, second = one.begin(B), one.begin(C)
    await settle()
    first.cancel()
    one.packs.release([A])  # before the first request has heard of its end
    await second
    assert one.engine.resident == {C}
    assert dict(one.packs._references) == {C: 1}


async def test_who_gives_up_during_a_load_holds_nothing_and_others_still_get_it() -> None:
    one = Served(1, read_s=0.1)
    first, second = one.begin(A), one.begin(A)
    await settle()
    first.cancel()
    await second
    assert one.engine.loads() == [A]
    one.packs.release([A])
    await one.packs.acquire([B])
    assert one.engine.resident == {B}


async def test_the_queue_goes_on_behind_a_pack_that_fails() -> None:
    one = Served(1)
    one.engine.broken.add(A)
    failing, waiting = one.begin(A), one.begin(B)
    await waiting
    with pytest.raises(ResidencyError):
        await failing
    assert one.engine.resident == {B}


async def test_resident_packs_may_pass_a_waiting_request_but_not_for_long() -> None:
    one = Served(1, timeout_s=1.0)
    await one.packs.acquire([A])
    waiting = one.begin(B)
    await settle()
    await one.packs.acquire([A])  # passes: A is resident, and B has only just come
    await asyncio.sleep(0.25)
    behind = one.begin(A)
    await settle()
    assert not behind.done()
    one.packs.release([A])
    one.packs.release([A])
    await waiting
    one.packs.release([B])
    await behind
    assert one.engine.resident == {A}


async def test_a_slot_is_given_to_a_request_when_a_prefetch_ends() -> None:
    one = Served(1, read_s=0.02)
    one.packs.prefetch([A])
    await one.packs.acquire([B])
    assert one.engine.resident == {B}


@pytest.mark.parametrize("seed", range(5))
async def test_under_pressure_every_request_runs_with_its_packs(seed: int) -> None:
    chance = random.Random(seed)
    one = Served(4, timeout_s=30.0, read_s=0.0005)
    one.engine.broken.add("bad0")
    outcomes: Counter[str] = Counter()

    async def request() -> None:
        digests = chance.sample([f"pk{number:02}" for number in range(12)] + ["bad0"], chance.randint(1, 4))
        await asyncio.sleep(chance.random() * 0.05)
        task = one.begin(*digests)
        if chance.random() < 0.15:
            await asyncio.sleep(chance.random() * 0.01)
            task.cancel()
        try:
            await task
        except (ResidencyError, asyncio.CancelledError):
            outcomes["ended"] += 1
            return
        for _ in range(3):
            assert set(digests) <= one.engine.resident
            assert len(one.engine.resident) <= 4
            await asyncio.sleep(chance.random() * 0.003)
        outcomes["ran"] += 1
        one.packs.release(digests)

    await asyncio.wait_for(asyncio.gather(*(request() for _ in range(120))), 30.0)
    assert outcomes["ran"] > 40 and outcomes["ran"] + outcomes["ended"] == 120
    assert not one.packs._references and not one.packs._queue
    await settle()
    await one.packs.acquire(["pk00", "pk01", "pk02", "pk03"])
