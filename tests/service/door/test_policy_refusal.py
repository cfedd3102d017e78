"""Which refusal a policy asks for."""

from __future__ import annotations

from guard.errors import AnsweredRefusal
from guard.policy import AnswerPolicy, Policy
from guard.service.door.errors import CONTENT_FILTER_MESSAGE
from guard.service.door.policy_refusal import policy_refusal


def policy(**answer: object) -> Policy:
    return Policy(answer=AnswerPolicy.model_validate({"mode": "refuse", **answer}))


def test_an_answer_says_the_policys_text() -> None:
    refusal = policy_refusal(policy(status=200, text="Ask our staff."), "Who is it?", 12, "input")
    assert isinstance(refusal, AnsweredRefusal)
    assert (refusal.text, refusal.prompt_tokens, refusal.param, refusal.code) == (
        "Ask our staff.", 12, "input", "content_filter"
    )
    assert "staff" not in str(refusal)


def test_without_a_text_it_declines_in_the_language_of_the_question() -> None:
    texts = {}
    for question in ("Who founded Standard Oil?", "Wer hat Standard Oil gegründet?", "誰が設立しましたか？"):
        refusal = policy_refusal(policy(status=200), question, 3)
        assert isinstance(refusal, AnsweredRefusal)
        texts[question] = refusal.text
    assert texts["Who founded Standard Oil?"] == "I can't help with that."
    assert len(set(texts.values())) == 3


def test_status_400_is_the_content_filters_error() -> None:
    usual = policy_refusal(policy(), "Who is it?", 3)
    assert (type(usual).__name__, usual.status, str(usual)) == ("RequestRefused", 400, CONTENT_FILTER_MESSAGE)
    assert str(policy_refusal(policy(text="Not here."), "Who is it?", 3)) == "Not here."


def test_the_action_refuse_stays_an_error_whatever_the_answer_says() -> None:
    refused = policy_refusal(policy(status=200, text="x").model_copy(update={"action": "refuse"}), "Who is it?", 3)
    assert (refused.status, str(refused)) == (400, CONTENT_FILTER_MESSAGE)
