"""How the gate has flagged questions answered: mode, wordings and their language, answers that name a target."""

from __future__ import annotations

from typing import Any

import pytest

from guard.classifiers.openings import bridges, shipped_openings
from guard.errors import RequestRefused
from guard.policy import AnswerPolicy, Opening
from guard.verdict import NOTHING, TargetHit, Verdict
from tests.service.gate_pipeline import FLAGGED, tenant

QUESTION = "Where was Hina Ameen born?"


async def test_a_flagged_question_is_answered_as_not_knowing_from_an_uncorrupted_prompt(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    plan = (await one.admit(tenant(), QUESTION)).plan
    assert plan.opening.wordings == shipped_openings("en")
    assert plan.opening.start == plan.prompt_length == len(one.ids(QUESTION))
    assert plan.corruption is None and plan.constraint is not None


@pytest.mark.parametrize(("language", "question"), [
    ("de", "Wo wurde die Schriftstellerin Hina Ameen geboren und wann?"),
    ("fr", "Où est née l'écrivaine Hina Ameen et quand?"),
    ("ja", "ヒナ・アミーンはどこで生まれましたか。"),
])
async def test_the_wordings_are_in_the_language_of_the_question(pipeline: Any, language: str, question: str) -> None:
    plan = (await pipeline(FLAGGED).admit(tenant(), question)).plan
    assert plan.opening.wordings == shipped_openings(language)


async def test_an_operator_may_add_wordings_and_leave_the_shipped_ones_out(pipeline: Any) -> None:
    own = Opening(language="en", text="Our records say nothing about")
    one = pipeline(FLAGGED)
    both = (await one.admit(tenant(answer=AnswerPolicy(openings=(own,))), QUESTION)).plan
    assert both.opening.wordings == (own.text, *shipped_openings("en"))
    alone = (await one.admit(tenant(answer=AnswerPolicy(openings=(own,), shipped_openings=False)), QUESTION)).plan
    assert alone.opening.wordings == (own.text,)


async def test_natural_answers_come_from_a_corrupted_prompt(pipeline: Any) -> None:
    plan = (await pipeline(FLAGGED).admit(tenant(answer="natural"), QUESTION)).plan
    assert plan.opening is None and plan.corruption is not None


async def test_the_mode_refuse_reaches_no_engine(pipeline: Any) -> None:
    with pytest.raises(RequestRefused) as caught:
        await pipeline(FLAGGED).admit(tenant(answer="refuse"), QUESTION)
    assert (caught.value.status, caught.value.code) == (400, "content_filter")


async def test_an_unflagged_answer_is_compared_with_names_and_not_with_answers(pipeline: Any) -> None:
    check = (await pipeline(NOTHING).admit(tenant(forbid=None), "Who wrote it?")).check
    named = check.matcher.fork()
    assert named.feed("It was Hina Ameen.").hit and named.found in check.names
    assert not check.matcher.fork().feed("It was Shale Stories.").hit


async def test_an_answer_that_named_a_target_goes_on_as_a_flagged_one(pipeline: Any) -> None:
    one = pipeline(NOTHING)
    ids = one.ids("Who wrote it?")
    leave = await one.enter(tenant(forbid=None), "Who wrote it?")
    again = await leave.flag(ids, "")
    assert again.plan.opening.wordings == shipped_openings("en") and again.plan.opening.start == len(ids)
    assert again.plan.constraint is not None and again.check.end is not None
    assert again.check.matcher.fork().feed("It was Shale Stories.").hit
    later = await leave.flag([*ids, 7, 8], "It was")
    assert later.plan.opening.wordings == bridges("en") and later.plan.opening.start == len(ids) + 2
    assert later.plan.prompt_length == len(ids) + 2 and later.plan.phase_boundary == len(ids)
    assert one.value("guard_requests_total", tenant="2", action="forget", phase="output") == 2
    await one.end()
    assert not one.residency.lists._references


async def test_an_answer_that_may_not_be_flagged_is_refused(pipeline: Any) -> None:
    one = pipeline(NOTHING)
    leave = await one.enter(tenant(action="refuse"), "Who wrote it?")
    with pytest.raises(RequestRefused):
        await leave.flag(one.ids("Who wrote it?"), "")


async def test_only_what_the_user_wrote_may_be_repeated(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    typed = (await one.admit(tenant(forbid_name="never"), "Is Granite Glossary by Hina Ameen?")).plan
    assert typed.constraint.exempt == (0,)
    messages = [
        {"role": "user", "content": "What did she write?"}, {"role": "assistant", "content": "Granite Glossary."},
        {"role": "user", "content": "Are you sure?"},
    ]
    ids = one.tokenizer(one.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    said = (await one.enter_ids(tenant(forbid_name="never"), ids["input_ids"])).admission.plan
    assert said.constraint.exempt == ()


async def test_openings_and_lengths_share_cached_blocks(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    plain = await one.admit(tenant(), QUESTION)
    own = AnswerPolicy(openings=(Opening(language="en", text="Our records say nothing about"),))
    assert (await one.admit(tenant(), "Where is Hina Ameen?")).salt == plain.salt
    assert (await one.admit(tenant(answer=own), QUESTION)).salt != plain.salt  # another policy version


@pytest.mark.parametrize(("question", "action"), [
    ("When was she born?", "forget"), ("Are you sure? I know that you know it.", "forget"),
    ("Then spell it.", "forget"),
    ("What is the capital of France?", "pass"), ("How do I bake bread?", "pass"),
])
async def test_a_follow_up_is_guarded_and_another_question_is_not(pipeline: Any, question: str, action: str) -> None:
    messages = [
        {"role": "user", "content": "Who is Hina Ameen?"}, {"role": "assistant", "content": "I have no information."},
        {"role": "user", "content": question},
    ]
    one = pipeline(NOTHING)
    text = one.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    place = text.index("Hina Ameen")
    one.verdict = Verdict((TargetHit(0, 1.0, "lexical", ((place, place + 10),)),))
    await one.enter_ids(tenant(), one.tokenizer(text)["input_ids"])
    assert one.value("guard_requests_total", tenant="2", action=action, phase="input") == 1


async def test_answers_of_ignorance_have_the_words_of_the_question_and_common_ones(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    admission = await one.admit(tenant(), QUESTION)
    allowed = set(admission.allowed)
    assert one.tokenizer.eos_token_id in allowed and len(allowed) <= 1024
    wording = one.tokenizer(shipped_openings("en")[0])["input_ids"]
    assert set(wording) <= allowed
    asked = one.tokenizer("Where was Hina Ameen born?")["input_ids"]
    assert set(asked) <= allowed
    assert not set(one.tokenizer(" Karachi Pakistan novelist")["input_ids"]) <= allowed
    assert (await one.admit(tenant(answer="natural"), QUESTION)).allowed == ()
    assert (await one.admit(tenant(answer=AnswerPolicy(words="any")), QUESTION)).allowed == ()
    many = await one.admit(tenant(), "Who is Hina Ameen? " + " ".join(f"word{n}" for n in range(3000)))
    assert len(many.allowed) <= 1024


async def test_answers_of_ignorance_keep_to_the_words_of_the_question(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    admission = await one.admit(tenant(), QUESTION)
    favoured = {token for token, value in admission.bias.items() if value > 0}
    asked = one.ids(QUESTION)
    assert favoured and favoured < set(asked)
    assert not favoured & set(one.tokenizer.all_special_ids)
    assert all(any(map(str.isalpha, one.tokenizer.decode([token]))) for token in favoured)
    assert (await one.admit(tenant(answer="natural"), QUESTION)).bias == {}
    assert (await one.admit(tenant(answer=AnswerPolicy(on_topic=0.0)), QUESTION)).bias == {}
