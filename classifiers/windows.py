"""Cuts a long prompt into overlapping windows that the encoder can read, turn by turn.

A turn's windows depend on the turn alone: the vectors of unchanged turns are found in the encoder's memory. Windows are
short, because a question hidden in a long text is lost in one vector of the whole; a sentence that ends with a question
mark is a window of its own as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from guard.verdict import Span

# about 64 word pieces of English, half of it shared with the next window
WINDOW_WORDS = 48
STRIDE_WORDS = 32
# characters that count as one word where a script writes none apart
_LONG_WORD = 12
# questions of one turn that get a window: the last ones, and a bound on the work that a prompt can cause
_MAX_QUESTIONS = 24
_MIN_QUESTION_WORDS = 4
_SENTENCE = re.compile(r"\S(?:[^\n]*?[.?!。？！](?=\s|$)|[^\n]*)")
_WORD = re.compile(rf"\S{{1,{_LONG_WORD}}}")


def windows(text: str, spans: Sequence[Span], without: Sequence[Span] = ()) -> list[str]:
    """Windows of the given character ranges of `text`, in order, without repetitions.

    A window that overlaps a range of `without` is left out.
    """
    found: dict[str, None] = {}
    for turn_start, turn_end in spans:
        turn = text[turn_start:turn_end]
        for start, end in [*_cut(turn), *_questions(turn)]:
            first, last = turn_start + start, turn_start + end
            if not any(first < right and left < last for left, right in without):
                found.setdefault(text[first:last])
    return list(found)


def _cut(turn: str) -> list[Span]:
    words = [match.span() for match in _WORD.finditer(turn)]
    if not words:
        return []
    pieces: list[Span] = []
    first = 0
    while True:
        last = min(first + WINDOW_WORDS, len(words))
        pieces.append((words[first][0], words[last - 1][1]))
        if last == len(words):
            return pieces
        first += STRIDE_WORDS


def _questions(turn: str) -> list[Span]:
    found = [
        match.span()
        for match in _SENTENCE.finditer(turn)
        if match.group()[-1] in "?？" and len(_WORD.findall(match.group())) >= _MIN_QUESTION_WORDS
    ]
    return found[-_MAX_QUESTIONS:]
