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
from guard.policy import DetectorPolicy, OutputPolicy, Policy, Target, Tenant, TenantSpec, tenant_of
from guard.service.gate import GatePipeline, salt_plan
from guard.service.residency import Residency
from guard.verdict import NOTHING, UNKNOWN, TargetHit, Verdict

KEY = b"k" * 64
FLAGGED = Verdict((TargetHit(0, 0.9, "lexical"),))
OPEN = tenant_of(TenantSpec(name="open"), 1)
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
        self.gate = GatePipeline(PromptDecoder(tokenizer), self, self.residency, Metrics(self.registry), KEY)

    async def call(self, method: str, arguments: tuple[Any, ...]) -> None:
        self.calls.append((method, arguments))
        if method == self.failing:
            raise RuntimeError("worker died")

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
