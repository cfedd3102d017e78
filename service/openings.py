"""How a flagged question is answered: the mode, and the wordings of not knowing in the question's language."""

from __future__ import annotations

from guard.classifiers.language import language_of
from guard.classifiers.openings import bridges, shipped_languages, shipped_openings
from guard.engine.admission import RequestContext
from guard.plan import MAX_WORDINGS
from guard.policy import AnswerMode, Tenant

FALLBACK = "en"


def answer_mode(context: RequestContext) -> AnswerMode:
    """How a flagged prompt of this request is answered; a plain completion need not be a question."""
    answer = context.tenant.policy.answer
    return answer.completions if context.prompt_field == "prompt" and answer.mode != "refuse" else answer.mode


def openings_for(tenant: Tenant, question: str) -> tuple[str, ...]:
    """Wordings that may begin the answer to `question`: shipped ones and the tenant's. Empty when there are none."""
    answer = tenant.policy.answer
    own: dict[str, list[str]] = {}
    for opening in answer.openings:
        own.setdefault(opening.language, []).append(opening.text)
    languages = {*own, *(shipped_languages() if answer.shipped_openings else ())}
    language = language_of(question, languages) if languages else FALLBACK
    shipped = shipped_openings(language) if answer.shipped_openings else ()
    return (*own.get(language, ()), *shipped)[:MAX_WORDINGS]


def bridges_for(question: str) -> tuple[str, ...]:
    """Texts that end a sentence in its middle as one of not knowing."""
    return bridges(language_of(question, set(shipped_languages())))
