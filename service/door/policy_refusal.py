"""What a policy answers to a prompt that it refuses: an error 400, or an answer that says no."""

from __future__ import annotations

from guard.classifiers.language import language_of
from guard.classifiers.openings import refusal_text, shipped_languages
from guard.errors import AnsweredRefusal, RequestRefused
from guard.policy import Policy
from guard.service.door.errors import content_filter_refusal


def policy_refusal(policy: Policy, question: str, prompt_tokens: int, param: str = "messages") -> RequestRefused:
    """The refusal of a prompt that ends with `question` and has `prompt_tokens` tokens.

    `action: refuse` is always an error 400. Otherwise `answer.status` decides, and `answer.text` is what the error or
    the answer says; without one an answer declines in the language of the question, where that is a shipped one.
    """
    answer = policy.answer
    if policy.action == "refuse":
        return content_filter_refusal(param)
    if answer.status == 400:
        return content_filter_refusal(param, answer.text)
    text = answer.text or refusal_text(language_of(question, shipped_languages()))
    return AnsweredRefusal(text, prompt_tokens=prompt_tokens, param=param)
