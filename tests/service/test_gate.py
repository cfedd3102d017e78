"""The gate's pipeline with the real decoder, automaton and tickets; only detector and engine are scripted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from guard import ticket
from guard.classifiers.answers import compares_answers
from guard.classifiers.automaton import Automaton, Vocabulary
from guard.classifiers.spans import PromptDecoder
from guard.demo.corpus import training_examples
from guard.demo.train import train_tokenizer
from guard.engine.admission import RequestContext
from guard.errors import DetectorError, RequestRefused, ResidencyError, TicketError
from guard.metrics import Metrics
from guard.policy import CorruptionPolicy, DetectorPolicy, OutputPolicy, Policy, Target, Tenant, TenantSpec, tenant_of
from guard.service.edit_residency import EditResidency
from guard.service.gate import GatePipeline, salt_plan
from guard.service.residency import Residency
from guard.verdict import NOTHING, UNKNOWN, TargetHit, Verdict

KEY = b"k" * 64
FLAGGED = Verdict((TargetHit(0, 0.9, "lexical"),))
OPEN = tenant_of(TenantSpec(name="open"), 1)
CALM, STYLE = "c" * 64, "5" * 64
MEANING = OutputPolicy(semantic=True)


def tenant(forbid: tuple[str, ...] | None = ("Granite Glossary",), allow_echo: bool = True, **policy: Any) -> Tenant:
    """A tenant that forgets one author."""
    target = Target(
        name="Hina Ameen", answers=('She wrote "Shale Stories" in Karachi.',), forbid=forbid, allow_echo=allow_echo
    )
    return tenant_of(TenantSpec(name="acme", policy=Policy(**policy), targets=(target,)), 2)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer(training_examples("full"))


class Pipeline:
    """A gate whose detector gives `verdict` and whose engine takes every call that `failing` does not name."""

    def __init__(self, tokenizer: Any, home: Path, verdict: Verdict | Exception, failing: str = "") -> None:
        self.tokenizer, self.verdict, self.failing = tokenizer, verdict, failing
        self.cosine: float | None = None
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.registry = CollectorRegistry()
        self.vocabulary = Vocabulary.from_tokenizer(tokenizer)
        self.residency = Residency(self.call, home / "automata", self.vocabulary, timeout_s=30.0)
        metrics = Metrics(self.registry)
        self.edits = EditResidency(self.call, home, capacity=2, timeout_s=0.5, metrics=metrics)
        self.gate = GatePipeline(PromptDecoder(tokenizer), self, self.residency, self.edits, metrics, KEY)

    async def call(self, method: str, arguments: tuple[Any, ...]) -> list[str]:
        self.calls.append((method, arguments))
        if method == self.failing:
            raise RuntimeError("worker died")
        return ["ready"]

    def can_compare(self, owner: Tenant) -> bool:
        return self.cosine is not None or not compares_answers(owner)

    async def similarity(self, owner: Tenant, targets: Sequence[int], sentence: str) -> float:
        if self.cosine is None or not targets:
            raise DetectorError("too late")
        return self.cosine

    async def detect(self, owner: Tenant, prompt: Any) -> Verdict:
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict

    def ids(self, question: str) -> list[int]:
        messages = [{"role": "user", "content": question}]
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(rendered)["input_ids"])

    async def admit(self, owner: Tenant, question: str = "Where was Hina Ameen born?") -> Any:
        return await self.gate.admit(RequestContext("r", owner), self.ids(question))

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def pipeline(tokenizer: Any, tmp_path: Path) -> Any:
    return lambda verdict, failing="": Pipeline(tokenizer, tmp_path, verdict, failing)


async def test_flagged_prompt_gets_a_signed_plan_for_exactly_its_tokens(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    admission = await one.admit(tenant())
    ids = one.ids("Where was Hina Ameen born?")
    signed = ticket.verify(admission.ticket, KEY, token_ids=ids, now_s=time.time())
    assert signed.plan == admission.plan and signed.salt == admission.salt
    assert admission.plan.corruption.ranges == ((1, len(ids) - 2),)
    assert admission.plan.constraint.start == len(ids)
    assert admission.check.patterns == ("granite glossary",)
    assert one.value("guard_requests_total", tenant="2", action="forget", phase="input") == 1
    with pytest.raises(TicketError):
        ticket.verify(admission.ticket, KEY, token_ids=[*ids, 5], now_s=time.time())


async def test_the_constraint_is_staged_then_committed_and_only_once(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    owner = tenant()
    digest = (await one.admit(owner)).plan.constraint.digest
    await one.admit(owner)
    assert [method for method, _ in one.calls] == ["guard_stage", "guard_commit"]
    path = Path(one.calls[0][1][1])
    assert Automaton.load(path, one.vocabulary.digest, digest).patterns == ("granite glossary",)


async def test_unflagged_prompt_has_the_empty_plan_and_only_listed_strings_checked(pipeline: Any) -> None:
    one = pipeline(NOTHING)
    admission = await one.admit(tenant())
    assert admission.plan.empty
    assert admission.check.patterns == ("granite glossary",)
    assert (await one.admit(tenant(forbid=None))).check is None
    assert (await one.admit(tenant(output=OutputPolicy(enabled=False)))).check is None


async def test_a_string_that_the_user_typed_may_be_repeated(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    question = "What is the Granite Glossary about?"
    echoing = await one.admit(tenant(), question)
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
    assert admission.plan.empty and admission.check.patterns == ("granite glossary",)
    assert one.value("guard_unguarded_total") == 1


@pytest.mark.parametrize("failing", ["guard_stage", "guard_commit"])
async def test_a_constraint_that_cannot_be_loaded_refuses_and_is_tried_again(pipeline: Any, failing: str) -> None:
    one = pipeline(FLAGGED, failing)
    owner = tenant()
    with pytest.raises(RequestRefused) as caught:
        await one.admit(owner)
    assert caught.value.status == 503
    one.failing = ""
    assert (await one.admit(owner)).plan.constraint is not None


async def test_corrupted_requests_hold_a_slot_until_they_end(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    context = RequestContext("r", tenant())
    admission = await one.gate.admit(context, one.ids("Where was Hina Ameen born?"))
    assert one.value("guard_slots_in_use", kind="corruption") == 1
    one.gate.finish(context, admission)
    assert one.value("guard_slots_in_use", kind="corruption") == 0


async def test_resume_turns_the_constraint_on_and_keeps_the_corruption(pipeline: Any) -> None:
    one = pipeline(NOTHING)
    owner = tenant()
    context = RequestContext("r", owner)
    ids = one.ids("Who wrote it?")
    first = await one.gate.admit(context, ids)
    second = await one.gate.resume(context, first, [*ids, 7, 8])
    assert first.plan.constraint is None and second.plan.constraint.start == len(ids)
    assert second.plan.prompt_length == len(ids) + 2
    ticket.verify(second.ticket, KEY, token_ids=[*ids, 7, 8], now_s=time.time())


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


async def test_mode_never_does_not_ask_the_detector(pipeline: Any) -> None:
    one = pipeline(ValueError())
    assert (await one.admit(tenant(detector=DetectorPolicy(mode="never")))).plan.empty


async def test_an_empty_list_is_admitted_without_any_of_this(pipeline: Any) -> None:
    one = pipeline(ValueError())
    admission = one.gate.admit_now(RequestContext("r", OPEN), [1, 2, 3])
    assert admission.plan.empty and admission.check is None and not one.calls
    assert one.gate.admit_now(RequestContext("r", tenant()), [1, 2, 3]) is None


async def test_only_answers_to_flagged_prompts_are_compared_by_meaning(pipeline: Any) -> None:
    calm, alert = pipeline(NOTHING), pipeline(FLAGGED)
    calm.cosine = alert.cosine = 0.9
    assert (await alert.admit(tenant(output=MEANING))).check.targets == (0,)
    assert (await alert.admit(tenant())).check.targets == ()
    assert (await calm.admit(tenant(output=MEANING))).check.targets == ()
    assert (await alert.admit(tenant(output=OutputPolicy(semantic=True, enabled=False)))).check is None


async def test_meaning_is_compared_where_no_string_is_forbidden(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    one.cosine = 0.9
    check = (await one.admit(tenant(forbid=(), output=MEANING))).check
    assert check.patterns == () and check.targets == (0,)


@pytest.mark.parametrize(("cosine", "hit"), [(0.85, True), (0.849, False), (-1.0, False)])
async def test_a_sentence_is_a_hit_from_the_threshold_on(pipeline: Any, cosine: float, hit: bool) -> None:
    one = pipeline(FLAGGED)
    one.cosine = cosine
    owner = tenant(output=MEANING)
    admission = await one.admit(owner)
    assert await one.gate.similar(RequestContext("r", owner), admission, "She wrote it.") == hit
    assert not await one.gate.similar(RequestContext("r", owner), admission, " ... ")


@pytest.mark.parametrize("mode", ["closed", "open"])
async def test_a_sentence_that_cannot_be_compared_is_left_to_the_failure_mode(pipeline: Any, mode: str) -> None:
    one = pipeline(FLAGGED)
    one.cosine = 0.9
    owner = tenant(output=MEANING, failure_mode=mode)
    admission = await one.admit(owner)
    one.cosine = None
    context = RequestContext("r", owner)
    if mode == "closed":
        with pytest.raises(DetectorError):
            await one.gate.similar(context, admission, "She wrote it.")
    else:
        assert not await one.gate.similar(context, admission, "She wrote it.")
    assert one.value("guard_detector_unknown_total") == 1
    assert one.value("guard_unguarded_total") == (mode == "open")


@pytest.mark.parametrize("mode", ["closed", "open"])
async def test_comparing_by_meaning_without_an_encoder_refuses_every_request(pipeline: Any, mode: str) -> None:
    one = pipeline(NOTHING)
    with pytest.raises(RequestRefused) as caught:
        await one.admit(tenant(output=MEANING, failure_mode=mode))
    assert (caught.value.status, caught.value.code) == (503, "guard_unavailable")


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
    assert one.residency._running[(await one.admit(tenant())).plan.constraint.digest] == 3
    one.failing = ""
    assert (await one.admit(edited_tenant())).plan.packs == (CALM,)


async def test_a_request_waits_while_all_slots_are_in_use_then_is_refused(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    context = RequestContext("r", edited_tenant({"pack": CALM}, {"pack": STYLE}))
    admission = await one.gate.admit(context, one.ids("Who?"))
    other = edited_tenant({"pack": "7" * 64})
    with pytest.raises(RequestRefused) as caught:
        await one.admit(other)
    assert caught.value.status == 503 and caught.value.retry_after_s
    late = asyncio.create_task(one.admit(other))
    await asyncio.sleep(0.05)
    one.gate.finish(context, admission)
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
    context = RequestContext("r", edited_tenant({"pack": CALM, "phase": "generation"}))
    ids = one.ids("Who?")
    first = await one.gate.admit(context, ids)
    second = await one.gate.resume(context, first, [*ids, 7, 8])
    third = await one.gate.resume(context, second, [*ids, 7, 8, 9])
    assert first.plan.phase_boundary == second.plan.phase_boundary == third.plan.phase_boundary == len(ids)
    assert (third.plan.prompt_length, third.plan.edits) == (len(ids) + 3, first.plan.edits)
    assert first.salt == second.salt == third.salt
    assert one.edits._references[CALM] == 1
    one.gate.finish(context, first)
    assert not one.edits._references


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
