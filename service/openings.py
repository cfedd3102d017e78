"""How a flagged question is answered: the mode, and the wordings of not knowing in the question's language."""

from __future__ import annotations

from guard.classifiers.language import language_of
from guard.classifiers.openings import avoided_words, bridges, rest_of, shipped_languages, shipped_openings
from guard.classifiers.spans import PromptDecoder
from guard.engine.admission import IgnoranceEnd, RequestContext
from guard.plan import MAX_WORDINGS
from guard.policy import AnswerMode, Tenant
from guard.service.question_words import allowed_tokens
from guard.service.residency.list_files import CompiledList
from guard.verdict import DecodedPrompt

FALLBACK = "en"
# vLLM takes a bias of at most 1,024 tokens, of which soft matching may need 512
MAX_FAVOURED = 448
AVOIDED = 20.0


def answer_mode(context: RequestContext) -> AnswerMode:
    """How a flagged prompt of this request is answered; a plain completion need not be a question."""
    answer = context.tenant.policy.answer
    return answer.completions if context.prompt_field == "prompt" and answer.mode != "refuse" else answer.mode


def openings_for(tenant: Tenant, question: str, compiled: CompiledList | None) -> IgnoranceEnd | None:
    """How the answer to `question` may begin, with shipped wordings and the tenant's; None when no wording is left.

    Wordings that contain a forbidden string of the list are left out.
    """
    answer = tenant.policy.answer
    own: dict[str, list[str]] = {}
    for opening in answer.openings:
        own.setdefault(opening.language, []).append(opening.text)
    language = language_of(question, {*own, *(shipped_languages() if answer.shipped_openings else ())} or {FALLBACK})
    shipped = shipped_openings(language) if answer.shipped_openings else ()
    return _end((*own.get(language, ()), *shipped), compiled, answer.sentences, rest_of(language))


def bridges_for(question: str, compiled: CompiledList | None) -> IgnoranceEnd | None:
    """How a sentence that was said in part may be ended as one of not knowing."""
    return _end(bridges(language_of(question, set(shipped_languages()))), compiled, 1, "")


def steering(
    tenant: Tenant, prompt: DecodedPrompt, decoder: PromptDecoder, end: IgnoranceEnd
) -> tuple[dict[int, float], tuple[int, ...]]:
    """What keeps an answer of ignorance to its question: biases, and the tokens that may be said (empty: all).

    The words of the last user turn are favoured, those that turn to the speaker ("my") are put off.
    """
    answer = tenant.policy.answer
    start, stop = decoder.last_turn(prompt)
    language = language_of(prompt.text[start:stop], set(shipped_languages()))
    allowed = allowed_tokens(prompt, decoder, end, language) if answer.words == "question" else ()
    if not answer.on_topic:
        return {}, allowed
    favoured = [
        prompt.token_ids[place] for place in decoder.asked_positions(prompt)
        if any(map(str.isalpha, prompt.text[slice(*prompt.offsets[place])]))
    ]
    avoided = [token for word in avoided_words(language) for token in decoder.tokens_of(" " + word)]
    return dict.fromkeys(favoured[-MAX_FAVOURED:], answer.on_topic) | dict.fromkeys(avoided, -AVOIDED), allowed


def _end(
    wordings: tuple[str, ...], compiled: CompiledList | None, sentences: int, rest: str
) -> IgnoranceEnd | None:
    kept = [text for text in wordings if compiled is None or not compiled.automaton.occurrences(text)]
    return IgnoranceEnd(tuple(kept[:MAX_WORDINGS]), sentences, rest) if kept else None
