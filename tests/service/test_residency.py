"""Automata of forbidden strings in the workers: loaded once, shared by equal lists, released after their last use."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from guard.classifiers.automaton import Automaton
from guard.engine.admission import RequestContext
from guard.errors import RequestRefused
from guard.policy import Target, TenantSpec, tenant_of
from guard.verdict import NOTHING
from tests.service.gate_pipeline import FLAGGED, tenant


async def test_the_constraint_is_staged_then_committed_and_only_once(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    owner = tenant()
    digest = (await one.admit(owner)).plan.constraint.digest
    await one.admit(owner)
    assert [method for method, _ in one.calls] == ["guard_stage", "guard_commit"]
    path = Path(one.calls[0][1][1])
    assert Automaton.load(path, one.vocabulary.digest, digest).patterns == ("granite glossary",)


@pytest.mark.parametrize("failing", ["guard_stage", "guard_commit"])
async def test_a_constraint_that_cannot_be_loaded_refuses_and_is_tried_again(pipeline: Any, failing: str) -> None:
    one = pipeline(FLAGGED, failing)
    owner = tenant()
    with pytest.raises(RequestRefused) as caught:
        await one.admit(owner)
    assert caught.value.status == 503
    one.failing = ""
    assert (await one.admit(owner)).plan.constraint is not None


async def test_lists_that_are_no_longer_served_are_released_after_their_last_request(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    old, new = tenant(), tenant(forbid=("Shale Stories",))
    context = RequestContext("r", old)
    admission = await one.gate.admit(context, one.ids("Who?"))
    one.residency.serve_only([new])
    await one.residency.constraint(new)
    await one.residency.retire()
    assert ("guard_release", ("constraint", admission.plan.constraint.digest)) not in one.calls
    one.gate.finish(context, admission)
    await one.residency.retire()
    assert one.calls[-1] == ("guard_release", ("constraint", admission.plan.constraint.digest))
    assert one.residency.resident == 1


async def test_lists_without_forbidden_strings_are_forgotten_too(pipeline: Any) -> None:
    one = pipeline(NOTHING)
    for number in range(3):
        owner = tenant_of(TenantSpec(name=f"tenant-{number}", targets=(Target(name="x", forbid=()),)), 5 + number)
        assert await one.residency.constraint(owner) is None
    one.residency.serve_only([])
    await one.residency.retire()
    assert not one.residency._builds


async def test_tenants_with_the_same_list_are_built_at_the_same_time(pipeline: Any) -> None:
    one = pipeline(NOTHING)
    twins = [tenant_of(TenantSpec(name=f"twin-{n}", targets=tenant().targets), 5 + n) for n in range(8)]
    built = await asyncio.gather(*(one.residency.constraint(twin) for twin in twins))
    assert len({constraint.digest for constraint in built}) == 1
    assert one.residency.resident == 1
