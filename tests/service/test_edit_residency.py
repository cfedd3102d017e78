"""Which packs are resident: read once, evicted when unused, kept while in use, tried again after a failure."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from guard.errors import ResidencyError
from tests.service.scripted_workers import A, B, C, D, Served


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
