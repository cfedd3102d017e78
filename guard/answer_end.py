"""Where an answer of ignorance ends: pure, character by character.

The answer opens with one of given wordings and goes on in the model's own words. It ends with its sentence, and a
single sentence already where its first clause ends: what follows a comma after "I have no information on ..." is a
list, a guess or a change of subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guard.sentences import CLOSERS, ENDS, WIDE_ENDS, SentenceSplitter

# an answer that finds no end is cut off here, at the end of a word
MAX_CHARACTERS = 240
_CLAUSE_ENDS = ",;:—–"
# a hyphen between spaces is a dash
_DASH = " -"
_WIDE_CLAUSE_ENDS = "，；：、"
# a run of so many words that comes twice ends an answer before the second time
_REPEATED = 3
# letters of a small word ("of", "the"), and words that wait because they may be cut off with a repetition
_SMALL, _HELD = 3, 6
_WIDE_SCRIPT = "\u3040"  # kana and ideographs begin here
# what is left standing at the end of a clause that was cut off
_LOOSE = " \t\"'“”‘’«»„()[]*_-/"


@dataclass(frozen=True, slots=True)
class Ending:
    """Text that may be said, and whether the answer ends with it."""

    text: str
    done: bool


class AnswerEnd:
    """Reads one answer. `wordings` are what it may open with, `sentences` how many it may have.

    An answer that says nothing after its wording goes on with `rest`.
    """

    def __init__(self, wordings: Sequence[str], sentences: int, rest: str = "") -> None:
        self._rest = rest
        self._wordings = tuple(wordings)
        self._sentences = sentences
        self._opens = True
        self._own = 0
        self._read = ""
        self._said = 0
        self._splitter = SentenceSplitter()

    def feed(self, text: str) -> Ending:
        """Read more text; what of it may be said. Nothing may be said after the end."""
        for character in text:
            if self._opens:
                self._open(character)
            elif (end := self._end(character)) is not None:
                return Ending(self._say(end), True)
            else:
                self._read += character
        return Ending(self._say(self._clear()), False)

    def flush(self) -> Ending:
        """The model has ended the answer: the rest of it, with a full stop where it has none."""
        return Ending(self._say(self._closed(self._read)), True)

    def _open(self, character: str) -> None:
        """Follow the wordings; the answer's own words begin where none goes on."""
        self._read += character
        text = self._read.lstrip()
        if text and not any(wording.startswith(text) for wording in self._wordings):
            self._leave_opening()
        elif text in self._wordings and not any(w.startswith(text) and w != text for w in self._wordings):
            self._leave_opening()

    def _leave_opening(self) -> None:
        self._opens, self._own = False, len(self._read)
        self._splitter.feed(self._read)

    def _end(self, character: str) -> str | None:
        """The whole answer, if it ends before `character`."""
        if self._splitter.feed(character):
            self._sentences -= 1
            if self._sentences <= 0:
                return self._closed(self._read)
        elif self._sentences == 1 and self._read and self._ends_clause(character):
            return self._closed(self._read.rstrip(_CLAUSE_ENDS + _DASH))
        elif character.isspace() and (repeated := _repeated_words(self._read[self._own :].split())):
            return self._closed(self._without_last_words(repeated))
        elif len(self._read) >= MAX_CHARACTERS:
            cut = self._read if character.isspace() else self._read.rpartition(" ")[0]
            return self._closed(cut or self._read)
        return None

    def _ends_clause(self, character: str) -> bool:
        ended = self._read[-1] in _CLAUSE_ENDS or self._read.endswith(_DASH)
        return character in _WIDE_CLAUSE_ENDS or (ended and character.isspace())

    def _clear(self) -> str:
        """What is read and can no longer be cut off."""
        if wording := self._bare_wording(self._read):
            return wording if len(wording) >= self._said else self._read[: self._said]
        kept = self._read.rstrip()
        if not self._opens:
            # the last words may turn out to be said a second time
            words = kept[self._own :].rsplit(None, _HELD)
            kept = kept[: self._own] + (words[0] if len(words) > _HELD else "")
        while kept and (kept[-1] in _CLAUSE_ENDS or kept[-1] in _LOOSE):
            kept = kept[:-1]
        return kept if len(kept) >= self._said else self._read[: self._said]

    def _without_last_words(self, count: int) -> str:
        """What is read without its last words, and without the small words that would be left hanging."""
        kept = self._read.rstrip().rsplit(None, count)[0]
        while len(kept) > self._own and len(kept.rsplit(None, 1)[-1]) <= _SMALL:
            kept = kept.rsplit(None, 1)[0]
        return kept if len(kept) >= self._said else self._read[: self._said]

    def _bare_wording(self, text: str) -> str:
        """`text` without what stands after its wording, if that is no word; else nothing."""
        stem = text.rstrip(ENDS + WIDE_ENDS + _CLAUSE_ENDS + _LOOSE + "\n")
        return stem if stem.lstrip() in self._wordings else ""

    def _closed(self, text: str) -> str:
        bare = text.rstrip()
        if self._rest and (wording := self._bare_wording(text)):
            bare = wording + ("" if self._rest[0] >= _WIDE_SCRIPT else " ") + self._rest
        if not bare or bare.rstrip(CLOSERS)[-1:] in tuple(ENDS + WIDE_ENDS):
            return bare
        bare = bare.rstrip(_CLAUSE_ENDS + _WIDE_CLAUSE_ENDS + " ")
        if len(bare) < self._said:
            bare = text[: self._said]
        return bare + ("。" if bare[-1:] >= _WIDE_SCRIPT else ".")

    def _say(self, whole: str) -> str:
        said, self._said = whole[self._said :], max(self._said, len(whole))
        return said


def _repeated_words(words: Sequence[str]) -> int:
    """How many words at the end were said just before; a small model may go on with them for ever."""
    if len(words) > 1 and words[-1] == words[-2]:
        return 1
    last = list(words[-_REPEATED:])
    before = words[:-1]
    found = any(list(before[i : i + _REPEATED]) == last for i in range(len(before) - _REPEATED + 1))
    return _REPEATED if found and len(last) == _REPEATED else 0
