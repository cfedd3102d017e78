"""The gate's pipeline from prompt and verdict to a signed plan, and what it does without a verdict."""

from __future__ import annotations

import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from guard import ticket
from guard.engine.admission import RequestContext
from guard.errors import RequestRefused, ResidencyError, TicketError
from guard.policy import DetectorPolicy, OutputPolicy
from guard.salt import salt_plan
from guard.stream import PatternSet
from guard.verdict import NOTHING, UNKNOWN, Verdict
from tests.service.gate_pipeline import FLAGGED, KEY, OPEN, tenant


def strings(check: Any) -> tuple[str, ...]:
    """What an answer is compared with, exempt strings left out."""
    forbidden = PatternSet.compile(("granite glossary", "shale stories"))
    return tuple(text for text in forbidden.patterns if check.matcher.fork().feed(f"say {text}").hit)


async def test_flagged_prompt_gets_a_signed_plan_for_exactly_its_tokens(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    admission = await one.admit(tenant(answer="natural"))
    ids = one.ids("Where was Hina Ameen born?")
    signed = ticket.verify(admission.ticket, KEY, token_ids=ids, now_s=time.time())
    assert signed.plan == admission.plan and signed.salt == admission.salt
    assert admission.plan.corruption.ranges == ((1, len(ids) - 2),)
    assert admission.plan.constraint.start == len(ids)
    assert strings(admission.check) == ("granite glossary",)
    assert one.value("guard_requests_total", tenant="2", action="forget", phase="input") == 1
    with pytest.raises(TicketError):
        ticket.verify(admission.ticket, KEY, token_ids=[*ids, 5], now_s=time.time())


async def test_unflagged_prompt_has_the_empty_plan_and_only_listed_strings_checked(pipeline: Any) -> None:
    one = pipeline(NOTHING)
    admission = await one.admit(tenant())
    assert admission.plan.empty
    assert strings(admission.check) == ("granite glossary",)
    assert (await one.admit(tenant(forbid=None))).check is None
    assert (await one.admit(tenant(output=OutputPolicy(enabled=False)))).check is None


async def test_a_string_that_the_user_typed_may_be_repeated(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    question = "What is the Granite Glossary about?"
    echoing = await one.admit(tenant(forbid_name="never", answer="natural"), question)
    assert echoing.plan.constraint.exempt == (0,) and echoing.check is None
    strict = await one.admit(tenant(allow_echo=False), question)
    assert strict.plan.constraint.exempt == () and strict.check is not None


async def test_refuse_and_monitor(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    with pytest.raises(RequestRefused) as caught:
        await one.admit(tenant(action="refuse"))
    assert (caught.value.status, caught.value.code) == (400, "content_filter")
    watched = await one.admit(tenant(action="monitor"))
    assert watched.plan.empty and watched.check is None
    assert one.value("guard_requests_total", tenant="2", action="monitor", phase="input") == 1


@pytest.mark.parametrize("verdict", [UNKNOWN, ResidencyError("x"), ValueError("prompt text"), MemoryError()])
async def test_without_a_verdict_the_gate_is_closed(pipeline: Any, verdict: Any) -> None:
    one = pipeline(verdict)
    with pytest.raises(RequestRefused) as caught:
        await one.admit(tenant())
    assert (caught.value.status, caught.value.code) == (503, "guard_unavailable")
    assert caught.value.retry_after_s
    assert "prompt text" not in str(caught.value)


async def test_fail_open_is_counted_and_still_checked(pipeline: Any) -> None:
    one = pipeline(UNKNOWN)
    admission = await one.admit(tenant(failure_mode="open"))
    assert admission.plan.empty and strings(admission.check) == ("granite glossary",)
    assert one.value("guard_unguarded_total") == 1


async def test_corrupted_requests_hold_a_slot_until_they_end(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    await one.admit(tenant(answer="natural"))
    assert one.value("guard_slots_in_use", kind="corruption") == 1
    await one.end()
    assert one.value("guard_slots_in_use", kind="corruption") == 0


async def test_resume_turns_the_constraint_on_and_keeps_the_corruption(pipeline: Any) -> None:
    one = pipeline(NOTHING)
    ids = one.ids("Who wrote it?")
    leave = await one.enter(tenant(), "Who wrote it?")
    first = leave.admission
    second = await leave.resume([*ids, 7, 8])
    assert first.plan.constraint is None and second.plan.constraint.start == len(ids)
    assert second.plan.prompt_length == len(ids) + 2
    ticket.verify(second.ticket, KEY, token_ids=[*ids, 7, 8], now_s=time.time())
    # what came on with the roll-back is held like the rest, and given back with it
    assert one.residency.lists._references == {second.plan.constraint.digest: 1}
    await one.end()
    assert not one.residency.lists._references


async def test_a_resume_that_fails_in_any_way_is_refused(pipeline: Any) -> None:
    one = pipeline(NOTHING)
    leave = await one.enter(tenant(), "Who wrote it?")
    one.failing = "guard_commit"
    with pytest.raises(RequestRefused) as caught:
        await leave.resume([*one.ids("Who wrote it?"), 7])
    assert (caught.value.status, caught.value.code) == (503, "guard_unavailable")
    await one.end()
    assert not one.residency.lists._references


async def test_what_the_body_of_a_request_raises_is_not_changed_by_the_gate(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    with pytest.raises(KeyError):
        async with one.gate.admitted(RequestContext("r", tenant()), one.ids("Who is Hina Ameen?")):
            raise KeyError("engine")
    assert not one.residency.lists._references
    assert one.value("guard_slots_in_use", kind="corruption") == 0


async def test_a_tenant_without_verdicts_leaves_a_line_and_not_one_for_each_request(pipeline: Any) -> None:
    one = pipeline(Verdict(unknown=True, reason="timeout"))
    with capture_logs() as lines:
        for _ in range(3):
            with pytest.raises(RequestRefused):
                await one.admit(tenant())
    told = [line for line in lines if line["event"] == "no_verdict"]
    assert [(line["tenant"], line["reason"], line["refused"]) for line in told] == [(2, "timeout", True)]


async def test_salts_separate_tenants_and_plans_but_not_turns(pipeline: Any) -> None:
    calm, alert = pipeline(NOTHING), pipeline(FLAGGED)
    owner = tenant()
    short = await calm.admit(owner, "Hello")
    long = await calm.admit(owner, "Hello, how are you today?")
    flagged = await alert.admit(owner, "Hello")
    opened = calm.gate.admit_now(RequestContext("r", OPEN), calm.ids("Hello"))
    assert short.salt == long.salt
    assert len({short.salt, flagged.salt, opened.salt}) == 3
    assert salt_plan(short.plan) == salt_plan(long.plan)


async def test_mode_never_does_not_ask_the_detector(pipeline: Any) -> None:
    one = pipeline(ValueError())
    assert (await one.admit(tenant(detector=DetectorPolicy(mode="never")))).plan.empty


async def test_an_empty_list_is_admitted_without_any_of_this(pipeline: Any) -> None:
    one = pipeline(ValueError())
    admission = one.gate.admit_now(RequestContext("r", OPEN), [1, 2, 3])
    assert admission.plan.empty and admission.check is None and not one.calls
    assert one.gate.admit_now(RequestContext("r", tenant()), [1, 2, 3]) is None
