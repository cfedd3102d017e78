"""Soft match while decoding: which words of the vocabulary are near a target's answer words, and what they cost.

GUARD (arXiv 2505.13312) subtracts, at every step, the largest cosine between the word being written and a word of the
forbidden answer. Here the words of the vocabulary are compared ahead of time, and every token that is a whole word gets
a bias of its own. Words are compared in mask form; what the question says itself, and very common words, are free.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guard.classifiers.build_queue import Work
from guard.classifiers.normalize import mask_form
from guard.classifiers.phrases import default_forbid
from guard.classifiers.token_bytes import read_tokenizer
from guard.classifiers.word_frequency import zipf
from guard.errors import DetectorError
from guard.policy import Target

Vectors = np.ndarray[Any, np.dtype[np.float32]]
Numbers = np.ndarray[Any, np.dtype[np.int32]]
# cosine from which a word costs anything (GUARD's delta)
DELTA = 0.5
# tokens of one request; Model Runner V2 takes 1,024 biases, of which the client may have some
MOST_TOKENS = 512
MINIMUM_LETTERS = 3
# a word that is more common is a function word, or says nothing about anybody. On TOFU authors 180-189 (strength 10)
# recall fell to 0.55 with 5.0, 0.52 with 5.5 and 0.68 with 4.5; that of others to 0.76, 0.66 and 0.85
COMMON_ZIPF = 5.0
# tokens read, and words compared, between two pauses
_TOKENS_READ = 2048
_VOCABULARY_BLOCK, _ANSWER_BLOCK = 4096, 256
_WORD = re.compile(r" ?([^\W\d_]+)")


@dataclass(frozen=True, slots=True)
class WordTokens:
    """Words of a vocabulary in mask form, sorted, each once, and the ids of the tokens that write each of them."""

    words: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class NearWords:
    """Places in `WordTokens.words` and their cosines [k] in `DELTA`..1, the largest first."""

    places: Numbers
    cosines: Vectors


def word_tokens(tokenizer: Any) -> Work[WordTokens]:
    """The tokens of a Hugging Face fast tokenizer that are whole words worth a penalty.

    Such a token is letters alone, three at least, after a space or capitalised like a name; others without a space
    count where one of these is the same word. Special tokens never count, nor do very common words. Raises
    ConfigurationError as `read_tokenizer` does.
    """
    read = read_tokenizer(tokenizer)
    found: dict[str, list[int]] = {}
    inside: dict[str, list[int]] = {}
    for token, piece in enumerate(read.pieces):
        if token % _TOKENS_READ == 0:
            yield
        if piece is None or token in read.special_ids:
            continue
        match = _WORD.fullmatch(piece.decode("utf-8", "replace"))
        if match is None or not _worth(form := mask_form(match[1])):
            continue
        begins = piece[:1] == b" " or match[1].istitle()
        (found if begins else inside).setdefault(form, []).append(token)
    for form in found.keys() & inside.keys():
        found[form] += inside[form]
    words = tuple(sorted(found))
    return WordTokens(words, tuple(tuple(sorted(found[word])) for word in words))


def answer_words(target: Target) -> tuple[str, ...]:
    """Words of a target's answers and forbidden strings that its questions, name and aliases do not contain; sorted."""
    said = _words((*target.answers, *default_forbid(target)))
    return tuple(sorted(word for word in said - asked_words(target) if _worth(word)))


def asked_words(target: Target) -> set[str]:
    """Words of a target's name, aliases and example questions, in mask form: whoever asks says them."""
    return _words((target.name, *target.aliases, *target.examples))


def near_words(vocabulary: Sequence[str], vectors: Vectors, answers: Vectors, free: Collection[str]) -> Work[NearWords]:
    """The words of `vocabulary` (unit vectors [n, d]) that are near a word of an answer (unit vectors [m, d]).

    Those in `free` are left out, and of many only the nearest are kept, twice what one request takes. Raises
    DetectorError on NaN.
    """
    best = np.full(len(vocabulary), -1.0, np.float32)
    for start in range(0, len(vocabulary), _VOCABULARY_BLOCK):
        block = slice(start, start + _VOCABULARY_BLOCK)
        for first in range(0, len(answers), _ANSWER_BLOCK):
            cosines = vectors[block] @ answers[first : first + _ANSWER_BLOCK].T
            np.maximum(best[block], cosines.max(axis=1), out=best[block])
            yield
    if not np.isfinite(best).all():
        raise DetectorError("the sentence encoder gave values that are not finite")
    near = np.flatnonzero(best >= DELTA)
    kept = np.array([place for place in near.tolist() if vocabulary[place] not in free], np.int32)
    order = kept[np.argsort(-best[kept], kind="stable")][: 2 * MOST_TOKENS]
    return NearWords(order, np.minimum(best[order], 1.0))


def penalties(words: WordTokens, near: Sequence[NearWords], strength: float, question: str) -> dict[int, float]:
    """By token id: -`strength` x cosine, for at most `MOST_TOKENS` tokens, the largest first.

    Of several targets the nearest counts; words of `question` are free. An answer word itself has cosine 1.
    """
    if not near or strength <= 0.0:
        return {}
    cosine_of: dict[int, float] = {}
    for one in near:
        for place, cosine in zip(one.places.tolist(), one.cosines.tolist(), strict=True):
            cosine_of[place] = max(cosine, cosine_of.get(place, 0.0))
    free = _words((question,))
    bias: dict[int, float] = {}
    for place, cosine in sorted(cosine_of.items(), key=lambda item: (-item[1], item[0])):
        if words.words[place] in free:
            continue
        for token in words.ids[place]:
            if len(bias) == MOST_TOKENS:
                return bias
            bias[token] = -strength * cosine
    return bias


def _words(texts: Sequence[str]) -> set[str]:
    return {word for text in texts for word in _split(text)}


def _split(text: str) -> Iterator[str]:
    """Words in mask form, which parts hyphens and apostrophes."""
    return (word for word in mask_form(text).split() if len(word) >= MINIMUM_LETTERS)


def _worth(word: str) -> bool:
    return len(word) >= MINIMUM_LETTERS and word.isalpha() and zipf(word) <= COMMON_ZIPF
