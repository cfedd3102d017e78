"""Residency of packs under load: nothing runs without its packs, nothing in use leaves, nobody waits for ever."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from guard.errors import PackError, ResidencyError
from guard.metrics import Metrics
from guard.service.edit_residency import EditResidency

A, B, C, D = "aaaa", "bbbb", "cccc", "dddd"


class Engine:
    """Two ranks that hold `capacity` packs, read in `read_s` seconds; `broken` packs fail when they were read.

    Refuses what a worker refuses: a commit before the pack was read or without a free slot.
    """

    def __init__(self, capacity: int, read_s: float = 0.002) -> None:
        self.capacity, self.read_s = capacity, read_s
        self.broken: set[str] = set()
        self.linger_s = 0.0
        self.states: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []

    @property
    def resident(self) -> set[str]:
        return {digest for digest, state in self.states.items() if state == "resident"}

    async def call(self, method: str, arguments: tuple[Any, ...]) -> list[Any]:
        kind, digest = arguments[0], arguments[-1]
        assert kind == "edit"
        self.calls.append((method, digest))
        await asyncio.sleep(0)
        if method == "guard_release" and not self.linger_s:
            self.states.pop(digest, None)
        elif method == "guard_stage":
            assert Path(arguments[1]).name == f"{digest}.safetensors"
            if self.states.setdefault(digest, "loading") == "loading":
                asyncio.get_running_loop().call_later(self.read_s, self._read, digest)
        elif method == "guard_staged":
            if digest in self.broken and self.states[digest] != "loading":
                raise PackError("the content hash does not match")
            return [self.states[digest], "ready"]
        elif method == "guard_commit":
            if self.states[digest] not in ("ready", "resident") or len(self.resident - {digest}) >= self.capacity:
                raise ResidencyError("there is no free slot")
            self.states[digest] = "resident"
        elif method == "guard_release":
            asyncio.get_running_loop().call_later(self.linger_s, self.states.pop, digest, None)
        return [None, None]

    def loads(self) -> list[str]:
        return [digest for method, digest in self.calls if method == "guard_stage"]

    def _read(self, digest: str) -> None:
        if self.states.get(digest) == "loading":
            self.states[digest] = "ready"


class Served:
    """The residency of an engine, with its metrics."""

    def __init__(self, capacity: int, timeout_s: float = 5.0, **engine: Any) -> None:
        self.engine = Engine(capacity, **engine)
        self.registry = CollectorRegistry()
        self.packs = EditResidency(self.engine.call, Path("home"), capacity, timeout_s, Metrics(self.registry))

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def begin(self, *digests: str) -> asyncio.Task[None]:
        return asyncio.create_task(self.packs.acquire(digests))


async def settle() -> None:
    """Let everything that can happen happen."""
    await asyncio.sleep(0.03)


async def test_packs_are_read_then_committed_once_for_all_who_need_them() -> None:
    one = Served(2)
    await asyncio.gather(*(one.packs.acquire([A]) for _ in range(5)))
    assert one.engine.resident == {A}
    assert Counter(one.engine.calls)["guard_stage", A] == Counter(one.engine.calls)["guard_commit", A] == 1
    assert one.value("guard_pack_loads_total", result="success") == 1
    assert one.value("guard_slots_in_use", kind="edit") == 1
    assert one.value("guard_residency_wait_seconds_count") == 5


async def test_different_packs_are_read_at_the_same_time() -> None:
    one = Served(3, read_s=0.2)
    started = asyncio.get_running_loop().time()
    await one.packs.acquire([A, B, C])
    assert asyncio.get_running_loop().time() - started < 0.5
    assert one.engine.resident == {A, B, C}


async def test_the_least_recently_used_pack_leaves_and_those_in_use_stay() -> None:
    one = Served(2)
    await one.packs.acquire([A])
    await one.packs.acquire([B])
    one.packs.release([A])
    one.packs.release([B])
    await one.packs.acquire([A])
    await one.packs.acquire([C])
    assert one.engine.resident == {A, C}
    one.packs.release([C])
    await one.packs.acquire([B])
    assert one.engine.resident == {A, B}
    assert one.value("guard_pack_evictions_total") == 2


async def test_a_pack_in_use_by_another_request_is_kept_until_the_last_has_ended() -> None:
    one = Served(1, timeout_s=0.05)
    await one.packs.acquire([A])
    await one.packs.acquire([A])
    one.packs.release([A])
    with pytest.raises(ResidencyError):
        await one.packs.acquire([B])
    one.packs.release([A])
    await one.packs.acquire([B])
    assert one.engine.resident == {B}


async def test_a_pack_that_a_worker_still_holds_leaves_a_step_later() -> None:
    one = Served(1)
    await one.packs.acquire([A])
    one.packs.release([A])
    one.engine.linger_s = 0.1
    await one.packs.acquire([B])
    assert one.engine.resident == {B}
    assert one.packs.failed == 0


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
    assert not order and one.value("guard_residency_waiting") == 3
    one.packs.release([A])
    await asyncio.gather(*waiting)
    assert order == [B, C, D] and one.value("guard_residency_waiting") == 0


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
    with pytest.raises(ResidencyError, match="more packs than"):
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
    assert one.value("guard_residency_waiting") == 0
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


async def test_a_pack_that_fails_leaves_the_others_alone_and_is_tried_again() -> None:
    one = Served(2)
    await one.packs.acquire([A])
    one.engine.broken.add(B)
    failing = [one.begin(B) for _ in range(3)]
    results = await asyncio.gather(*failing, return_exceptions=True)
    assert [type(result) for result in results] == [ResidencyError] * 3
    assert one.engine.resident == {A} and one.packs.failed == 1
    assert one.value("guard_pack_loads_total", result="failure") == 1
    await one.packs.acquire([C])
    assert one.engine.resident == {A, C}
    one.packs.release([C])
    one.engine.broken.clear()
    await one.packs.acquire([B])
    assert one.engine.resident == {A, B} and one.packs.failed == 0


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


async def test_prefetch_fills_free_slots_and_evicts_only_what_nobody_wants() -> None:
    one = Served(2)
    await one.packs.acquire([A])
    await one.packs.acquire([B])
    one.packs.release([B])
    await asyncio.gather(*one.packs.prefetch([A, C, D]))
    assert one.engine.resident == {A, C}
    await asyncio.gather(*one.packs.prefetch([C, D]))
    assert one.engine.resident == {A, C}
    one.packs.release([A])
    await asyncio.gather(*one.packs.prefetch([C, D]))
    assert one.engine.resident == {C, D}


async def test_a_prefetched_pack_that_fails_is_reported_and_stops_nobody() -> None:
    one = Served(2)
    one.engine.broken.add(A)
    await asyncio.gather(*one.packs.prefetch([A, B]))
    assert (one.engine.resident, one.packs.failed) == ({B}, 1)
    one.packs.prefetch([B])  # no tenant wants it any more
    assert one.packs.failed == 0


async def test_an_engine_without_sites_reports_the_packs_that_tenants_want() -> None:
    one = Served(0)
    assert one.packs.prefetch([A, B]) == [] and one.packs.failed == 2
    assert one.packs.prefetch([]) == [] and one.packs.failed == 0


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
