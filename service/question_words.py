"""The words that an answer of ignorance may use: of its question, of its opening, and the commonest of the language.

A model that was made to say "I have no information on" may go on with what it knows all the same. With these words it
can only say what it was asked. The tokens are given to vLLM as the request's `allowed_token_ids`, which both runners
take; at most 1,024.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from guard.classifiers.spans import PromptDecoder
from guard.engine.admission import IgnoranceEnd
from guard.verdict import DecodedPrompt

MAX_ALLOWED = 1024
# tokens of a long question that count, the last ones
MAX_QUESTION = 512
COMMON_WORDS = 120
_MARKS = (".", ",", "?", "'s", "\u2019s", "'", '"', ' "', '."', '".', ".\n", ".\n\n", "\n", "-", "。", "，", "、", "的")
_WORD = re.compile(r"[^\W_]+")


def allowed_tokens(prompt: DecodedPrompt, decoder: PromptDecoder, end: IgnoranceEnd, language: str) -> tuple[int, ...]:
    """Sorted ids of the tokens of which an answer of ignorance to the last user turn of `prompt` may consist."""
    start, stop = decoder.last_turn(prompt)
    # in order of worth: what comes beyond the limit is left out
    worth = dict.fromkeys(decoder.end_ids)
    # in every way that they can be written: the opening lets the model choose, and must not end in the middle
    worth |= dict.fromkeys(token for wording in end.wordings for token in decoder.tokens_within(f" {wording}"))
    worth |= dict.fromkeys(token for mark in _MARKS for token in decoder.tokens_of(mark))
    worth |= dict.fromkeys(decoder.encode(f" {end.rest}") if end.rest else ())
    worth |= dict.fromkeys(prompt.token_ids[place] for place in decoder.asked_positions(prompt)[-MAX_QUESTION:])
    worth |= dict.fromkeys(_spelled(prompt.text[start:stop], decoder))
    worth |= dict.fromkeys(token for word in _common_words(language) for token in decoder.tokens_of(f" {word}"))
    return tuple(sorted(list(worth)[:MAX_ALLOWED]))


def _spelled(question: str, decoder: PromptDecoder) -> Iterator[int]:
    """Tokens of the question's words as they are written inside a sentence."""
    for word in dict.fromkeys(_WORD.findall(question)[-MAX_QUESTION:]):
        for written in (word, word.lower()):
            yield from decoder.encode(f" {written}")


@lru_cache(maxsize=32)
def _common_words(language: str) -> tuple[str, ...]:
    from wordfreq import top_n_list

    try:
        words: Iterable[str] = top_n_list(language, COMMON_WORDS, wordlist="small")
    except LookupError:
        return ()
    return tuple(word for word in words if word.isalpha())
