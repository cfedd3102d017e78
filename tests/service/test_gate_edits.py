"""Plans with edits: their packs are resident before a ticket is signed, and stay until the request ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from guard.engine.admission import RequestContext
from guard.errors import RequestRefused
from guard.policy import CorruptionPolicy, Policy, Tenant, TenantSpec, tenant_of
from guard.salt import salt_plan
from guard.verdict import UNKNOWN
from tests.service.gate_pipeline import CALM, FLAGGED, STYLE, tenant


def edited_tenant(*edits: dict[str, Any], **policy: Any) -> Tenant:
    """The tenant with `edits`; by default one pack on flagged prompts."""
    return tenant(edits=edits or ({"pack": CALM, "strength": 2.0},), **policy)


async def test_the_packs_of_a_plan_are_resident_before_it_is_signed(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    admission = await one.admit(edited_tenant())
    assert [(lane.pack, lane.strength) for lane in admission.plan.edits] == [(CALM, 2.0)]
    staged = [method for method, arguments in one.calls if arguments[0] == "edit"]
    assert staged == ["guard_stage", "guard_staged", "guard_commit"]
    assert one.value("guard_planned_total", kind="edit") == 1


@pytest.mark.parametrize("failing", ["guard_stage", "guard_staged", "guard_commit"])
async def test_a_pack_that_cannot_be_loaded_refuses_its_requests_only(pipeline: Any, failing: str) -> None:
    one = pipeline(FLAGGED)
    await one.admit(tenant())  # the list itself is resident
    one.failing = failing
    with pytest.raises(RequestRefused) as caught:
        await one.admit(edited_tenant())
    assert (caught.value.status, caught.value.code) == (503, "guard_unavailable")
    assert (await one.admit(tenant())).plan.constraint is not None
    # what was refused holds nothing, neither its list nor its slot of corruption
    assert one.residency.lists._references[(await one.admit(tenant())).plan.constraint.digest] == 3
    one.failing = ""
    assert (await one.admit(edited_tenant())).plan.packs == (CALM,)


async def test_a_request_waits_while_all_slots_are_in_use_then_is_refused(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    await one.admit(edited_tenant({"pack": CALM}, {"pack": STYLE}), "Who?")
    other = edited_tenant({"pack": "7" * 64})
    with pytest.raises(RequestRefused) as caught:
        await one.admit(other)
    assert caught.value.status == 503 and caught.value.retry_after_s
    running, one.open = one.open, AsyncExitStack()
    late = asyncio.create_task(one.admit(other))
    await asyncio.sleep(0.05)
    await running.aclose()
    assert (await late).plan.packs == ("7" * 64,)


async def test_more_packs_than_lanes_are_refused_like_a_filtered_prompt(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    with pytest.raises(RequestRefused) as caught:
        await one.admit(edited_tenant(*({"pack": str(digit) * 64} for digit in range(5))))
    assert (caught.value.status, caught.value.code) == (400, "content_filter")


async def test_edits_of_every_request_apply_without_a_list_and_without_asking_the_detector(pipeline: Any) -> None:
    one = pipeline(ValueError())
    policy = Policy.model_validate({"edits": [{"pack": STYLE, "when": "always"}]})
    owner = tenant_of(TenantSpec(name="styled", policy=policy), 3)
    assert one.gate.admit_now(RequestContext("r", owner), [1, 2, 3]) is None
    admission = await one.admit(owner)
    assert (admission.plan.packs, admission.check) == ((STYLE,), None)
    assert one.value("guard_requests_total", tenant="3", action="pass", phase="input") == 1


async def test_edits_of_every_request_survive_a_missing_verdict(pipeline: Any) -> None:
    one = pipeline(UNKNOWN)
    edits = ({"pack": STYLE, "when": "always"}, {"pack": CALM})
    assert (await one.admit(edited_tenant(*edits, failure_mode="open"))).plan.packs == (STYLE,)
    with pytest.raises(RequestRefused) as caught:
        await one.admit(edited_tenant(*edits))
    assert caught.value.status == 503


async def test_a_resumed_answer_keeps_its_packs_and_where_it_began(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    ids = one.ids("Who?")
    leave = await one.enter(edited_tenant({"pack": CALM, "phase": "generation"}), "Who?")
    first = leave.admission
    second = await leave.resume([*ids, 7, 8])
    third = await leave.resume([*ids, 7, 8, 9])
    assert first.plan.phase_boundary == second.plan.phase_boundary == third.plan.phase_boundary == len(ids)
    assert (third.plan.prompt_length, third.plan.edits) == (len(ids) + 3, first.plan.edits)
    assert first.salt == second.salt == third.salt
    assert one.residency.packs._references[CALM] == 1
    await one.end()
    assert not one.residency.packs._references


async def test_turns_share_blocks_only_where_edits_do_not_tell_phases_apart(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    for phase, shared in (("both", True), ("prompt", False), ("generation", False)):
        owner = edited_tenant({"pack": CALM, "phase": phase}, corruption=CorruptionPolicy(enabled=False))
        short, long = await one.admit(owner, "Hello"), await one.admit(owner, "Hello, how are you today?")
        assert (short.salt == long.salt) == shared


async def test_another_strength_or_pack_never_shares_a_block(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    changes: list[dict[str, Any]] = [{}, {"strength": 0.5}, {"pack": STYLE}, {"phase": "prompt"}]
    variants = [{"pack": CALM, **change} for change in changes]
    plans = [salt_plan((await one.admit(edited_tenant(edit))).plan) for edit in variants]
    assert len({plan.model_copy(update={"policy_version": ""}).digest() for plan in plans}) == len(variants)
