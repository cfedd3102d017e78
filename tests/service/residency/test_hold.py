"""Forget-lists on their way into the workers: on demand, once, in bounded memory, each tenant for itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from guard.classifiers.automaton import Automaton
from guard.errors import RequestRefused, ResidencyError
from guard.plan import Constraint, Plan
from guard.policy import Target, Tenant, TenantSpec, tenant_of
from guard.verdict import NOTHING
from tests.service.gate_pipeline import CALM, FLAGGED, STYLE, tenant


def named(number: int, forbid: str) -> Tenant:
    return tenant_of(TenantSpec(name=f"tenant-{number}", targets=(Target(name="x", forbid=(forbid,)),)), number)


async def test_a_list_is_staged_read_and_committed_once(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    owner = tenant()
    digest = (await one.admit(owner)).plan.constraint.digest
    await one.admit(owner)
    assert [method for method, _ in one.calls] == ["guard_stage", "guard_staged", "guard_commit"]
    path = Path(one.calls[0][1][1])
    assert Automaton.load(path, one.vocabulary.digest, digest).patterns == ("ameen", "granite glossary", "hina ameen")


async def test_a_prompt_without_a_flag_needs_no_slot(pipeline: Any) -> None:
    one = pipeline(NOTHING)
    assert (await one.admit(tenant())).check is not None
    assert not one.calls


@pytest.mark.parametrize("failing", ["guard_stage", "guard_staged", "guard_commit"])
async def test_a_list_that_cannot_be_loaded_closes_its_tenant_until_the_next_try(pipeline: Any, failing: str) -> None:
    one = pipeline(FLAGGED, failing)
    with pytest.raises(RequestRefused) as caught:
        await one.admit(tenant())
    assert caught.value.status == 503
    assert one.lists.failures == {2: "RuntimeError"}
    one.failing = ""
    assert (await one.admit(named(3, "Shale Stories"))).plan.constraint is not None
    with pytest.raises(RequestRefused):
        await one.admit(tenant())
    one.clock_s = 2.0
    assert (await one.admit(tenant())).plan.constraint is not None
    assert one.lists.failures == {}


async def test_more_lists_than_slots_take_turns_and_none_runs_without(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    owners = [named(number, f"Forbidden Words {number}") for number in range(3, 33)]

    async def request(owner: Tenant) -> str:
        async with one.residency.hold(plan_of((await one.lists.of(owner)).digest)):
            await asyncio.sleep(0.001)
            assert one.residency.lists.resident <= 8
            return owner.name

    assert len(set(await asyncio.gather(*map(request, owners)))) == 30
    assert one.value("guard_evictions_total", kind="constraint") >= 22


def plan_of(digest: str, *packs: str) -> Plan:
    edits = tuple({"pack": pack} for pack in packs)
    return Plan.model_validate({
        "tenant_index": 1, "policy_version": "v", "prompt_length": 3,
        "constraint": Constraint(digest=digest, start=0), "edits": edits,
    })


async def test_a_hold_whose_packs_cannot_be_had_keeps_no_list(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    digest = (await one.lists.of(tenant())).digest
    with pytest.raises(ResidencyError):
        async with one.residency.hold(plan_of(digest, CALM, STYLE, "7" * 64)):
            pass
    assert not one.residency.lists._references and not one.residency.packs._references


async def test_two_choices_that_roll_back_at_once_hold_their_list_once(pipeline: Any) -> None:
    one = pipeline(NOTHING)
    leave = await one.enter(tenant(), "Who wrote it?")
    ids = one.ids("Who wrote it?")
    resumed = await asyncio.gather(leave.resume([*ids, 7]), leave.resume([*ids, 8, 9]))
    assert [admission.plan.prompt_length for admission in resumed] == [len(ids) + 1, len(ids) + 2]
    assert all(admission.plan.constraint is not None for admission in resumed)
    await one.end()
    assert not one.residency.lists._references


async def test_lists_that_are_no_longer_served_leave_after_their_last_request(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    old, new = tenant(), tenant(forbid=("Shale Stories",))
    digest = (await one.admit(old)).plan.constraint.digest
    one.lists.serve_only({new.name: new})
    one.residency.lists.serve_only(one.lists.needed)
    await asyncio.sleep(0.01)
    assert ("guard_release", ("constraint", digest)) not in one.calls
    await one.end()
    await asyncio.sleep(0.01)
    assert one.calls[-1] == ("guard_release", ("constraint", digest))
    assert one.residency.lists.resident == 0


async def test_tenants_with_the_same_list_share_a_slot(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    twins = [tenant_of(TenantSpec(name=f"twin-{n}", targets=tenant().targets), 5 + n) for n in range(8)]
    admissions = await asyncio.gather(*(one.admit(twin) for twin in twins))
    assert len({admission.plan.constraint.digest for admission in admissions}) == 1
    assert one.residency.lists.resident == 1


async def test_log_lines_about_a_broken_list_hold_no_content(pipeline: Any) -> None:
    one = pipeline(FLAGGED, "guard_stage")
    with capture_logs() as lines, pytest.raises(RequestRefused):
        await one.admit(tenant())
    assert any(line["event"] == "list_not_ready" and line["tenant"] == 2 for line in lines)
    assert "granite" not in str(lines).lower() and "hina" not in str(lines).lower()
