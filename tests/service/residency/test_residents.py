"""What is resident of one kind: read once, evicted when unused, kept while in use, tried again after a failure."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from guard.errors import ResidencyError
from tests.service.residency.scripted_workers import A, B, C, D, Served, settle


async def test_packs_are_read_then_committed_once_for_all_who_need_them() -> None:
    one = Served(2)
    await asyncio.gather(*(one.packs.acquire([A]) for _ in range(5)))
    assert one.engine.resident == {A}
    assert Counter(one.engine.calls)["guard_stage", A] == Counter(one.engine.calls)["guard_commit", A] == 1
    assert one.value("guard_loads_total", kind="edit", result="success") == 1
    assert one.value("guard_slots_in_use", kind="edit") == 1
    assert one.value("guard_residency_wait_seconds_count", kind="edit") == 5


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
    assert one.value("guard_evictions_total", kind="edit") == 2


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
    assert len(one.packs.failures) == 0


async def test_a_pack_that_fails_leaves_the_others_alone_and_is_tried_again() -> None:
    one = Served(2)
    await one.packs.acquire([A])
    one.engine.broken.add(B)
    failing = [one.begin(B) for _ in range(3)]
    results = await asyncio.gather(*failing, return_exceptions=True)
    assert [type(result) for result in results] == [ResidencyError] * 3
    assert one.engine.resident == {A} and len(one.packs.failures) == 1
    assert one.value("guard_loads_total", kind="edit", result="failure") == 1
    await one.packs.acquire([C])
    assert one.engine.resident == {A, C}
    one.packs.release([C])
    one.engine.broken.clear()
    await one.packs.acquire([B])
    assert one.engine.resident == {A, B} and len(one.packs.failures) == 0


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
    assert (one.engine.resident, len(one.packs.failures)) == ({B}, 1)
    one.packs.serve_only({B}.__contains__)  # no tenant has the other one any more
    assert len(one.packs.failures) == 0


async def test_an_engine_without_sites_reports_the_packs_that_tenants_want() -> None:
    one = Served(0)
    assert one.packs.prefetch([A, B]) == [] and len(one.packs.failures) == 2
    one.packs.serve_only(set[str]().__contains__)
    assert len(one.packs.failures) == 0


async def test_a_failure_is_told_once_with_its_reason() -> None:
    one = Served(2)
    one.engine.broken.add(B)
    with pytest.raises(ResidencyError):
        await one.packs.acquire([B])
    assert one.failed == [(B, "the content hash does not match")]
    assert one.packs.failures == {B: "the content hash does not match"}


async def test_large_content_takes_the_room_of_several() -> None:
    sizes = {A: 40, B: 40, C: 90, D: 20}
    one = Served(4, sizes=sizes, content_bytes=100)
    await one.packs.acquire([A, B])
    one.packs.release([A, B])
    await one.packs.acquire([C])
    assert one.engine.resident == {C}
    waiting = one.begin(D)
    await settle()
    assert not waiting.done()
    one.packs.release([C])
    await waiting
    assert one.engine.resident == {D}


async def test_content_beyond_the_memory_is_refused_at_once() -> None:
    one = Served(4, timeout_s=60.0, sizes={A: 101}, content_bytes=100)
    with pytest.raises(ResidencyError, match="memory"):
        await one.packs.acquire([A])
    assert one.packs.prefetch([A]) == [] and A in one.packs.failures


async def test_what_no_tenant_has_any_more_leaves_with_its_last_request() -> None:
    one = Served(3)
    await one.packs.acquire([A])
    await one.packs.acquire([B])
    one.packs.release([A])
    one.packs.serve_only({C}.__contains__)
    await settle()
    assert one.engine.resident == {B}
    one.packs.release([B])
    await settle()
    assert one.engine.resident == set()


async def test_what_comes_back_into_use_before_it_left_stays() -> None:
    one = Served(3)
    await one.packs.acquire([A])
    one.packs.serve_only(set[str]().__contains__)
    await one.packs.acquire([A])  # a request that was admitted under the version before
    one.packs.release([A])
    one.packs.release([A])
    await settle()
    assert one.engine.loads() == [A]


async def test_what_is_retired_and_asked_for_again_at_once_is_loaded_anew() -> None:
    one = Served(3)
    await one.packs.acquire([A])
    one.packs.release([A])
    one.packs.serve_only(set[str]().__contains__)
    await one.packs.acquire([A])
    assert one.engine.resident == {A} and one.engine.loads() == [A, A]


async def test_no_count_of_an_ended_request_stays() -> None:
    one = Served(2)
    for digest in (A, B, C):
        await one.packs.acquire([digest])
        one.packs.release([digest])
    assert not one.packs._references
