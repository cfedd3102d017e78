"""Where a part of a name stands in a text, and whose name it seems to be there.

"Hamill" alone, "Mark Richard Hamill" and "M. Hamill" can be Mark Hamill; "Pete Hamill" and "Hamill Road" are others.
Nothing but spelling is looked at: capitals, the words beside it, the end of the sentence.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from guard.classifiers.name_words import GENERATIONS, NOT_BEFORE_PEOPLE, OPENERS, PARTICLES, SAME_NAME, TITLES
from guard.classifiers.normalize import mask_form
from guard.classifiers.person_names import is_initial
from guard.classifiers.word_frequency import zipf
from guard.verdict import Span

# own: a given name of the target stands beside it; other: another one's; bare: none; common: not spelled like a name
Bearer = Literal["own", "other", "bare", "common"]
_BEFORE = re.compile(r"([\w][\w.'\u2019-]*)[\"\u201d\u2019')\u00bb]*[ ]+[\"\u201c\u2018(\u00ab']*$")
_AFTER = re.compile(r"[ ]+([^\W\d_][\w'\u2019.-]*)")
_TITLE_AFTER = re.compile(r",[ ]+[A-Z]\w+[ ]+[A-Z]")
_AFTER_COMMA = re.compile(r",[ ]+([^\W\d_][\w'\u2019.-]*)")
_WORD_BEFORE = re.compile(r"([^\W\d_]+)[ ]+$")
_SENTENCE_END = re.compile(r"[.!?。！？][\"'\u201d\u2019)]*\s|[\n。！？]")
_POSSESSIVE = re.compile(r"['\u2019]s?\b")
# what may stand between the beginning of a sentence and its first word
_MARKS = " \t\"'\u201c\u2018(*-_"
_REACH = 80
_MOST_GIVEN = 6
_LONGEST_SENTENCE = 400
# a capitalised word that opens a sentence is no name from this Zipf value on
_FUNCTION_WORD = 5.5
_SHARED_LETTERS = 3


@dataclass(frozen=True, slots=True)
class Mention:
    """A part of a name in a text: its characters, the sentence around it, and whose it seems to be."""

    span: Span
    sentence: Span
    bearer: Bearer


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What stands around a word: enough to say of any target whether it bears the name.

    `before` are the given names, nicknames and initials that lead to it, in mask form, `opener` a capitalised word in
    their place that opens the sentence and may be none; `turned` is the word behind a comma, as in "Surname, First".
    """

    span: Span
    sentence: Span
    before: tuple[str, ...]
    opener: str
    turned: str
    name_after: bool
    spelled: bool
    ordinary: bool
    opens_commonly: bool

    def surname(self, given: Collection[str]) -> Mention:
        """The mention of a surname; `given` are the target's given names in mask form."""
        if not self.spelled:
            return self._mention("common")
        near = (*self.before, self.opener) if self.opener else self.before
        if self.turned in given or any(_same(word, name) for word in near for name in given):
            return self._mention("own")
        return self._mention("common") if self.ordinary else self._other_or_bare()

    def given_name(self) -> Mention:
        """The mention of a given name; with another capitalised word behind it, it is another person's."""
        return self._mention("common") if not self.spelled or self.ordinary else self._other_or_bare()

    def whole_name(self) -> Mention:
        """The mention of a name of one word: "Will" at the beginning of a sentence is none."""
        return self._mention("common") if not self.spelled or self.opens_commonly else self._other_or_bare()

    def _other_or_bare(self) -> Mention:
        return self._mention("other" if self.before or self.name_after else "bare")

    def _mention(self, bearer: Bearer) -> Mention:
        return Mention(self.span, self.sentence, bearer)


def surroundings(text: str, span: Span) -> Surroundings:
    """Read what stands around a word of `text`."""
    start, end = span
    sentence = _sentence(text, span)
    before, opener = _names_before(text, start, sentence[0])
    turned = _AFTER_COMMA.match(text, end)
    possessive = _POSSESSIVE.match(text, end) is not None
    opens = not text[sentence[0] : start].strip(_MARKS)
    return Surroundings(
        span, sentence, before, opener, mask_form(turned[1]) if turned else "", _name_after(text, end),
        spelled=_capital(text[start:end]) and not _compound(text, span),
        ordinary=not possessive and _ordinary(text, start, sentence[0]),
        opens_commonly=opens and not possessive and _opener(mask_form(text[start:end])),
    )


def _names_before(text: str, start: int, first: int) -> tuple[tuple[str, ...], str]:
    """Names that lead to `start`, the nearest first, and the sentence's first word where that may be one of them."""
    found: list[str] = []
    position = start
    while len(found) < _MOST_GIVEN:
        match = _BEFORE.search(text, max(first, position - _REACH), position)
        if match is None:
            break
        word, position = match[1], match.start()
        form = mask_form(word.removesuffix("'s").removesuffix("\u2019s"))
        if form in TITLES or (not word[:1].isupper() and form not in PARTICLES) or word.endswith(("'s", "\u2019s")):
            break
        if word.endswith(".") and not is_initial(word):
            break
        if not text[first:position].strip(_MARKS) and _opener(form):
            return tuple(found), form
        if word[:1].isupper():
            found.append(form)
    return tuple(found), ""


def _ordinary(text: str, start: int, first: int) -> bool:
    """Whether the word before makes an ordinary word of it: "the West", "in Swift"."""
    match = _WORD_BEFORE.search(text, max(first, start - _REACH), start)
    return match is not None and match[1].casefold() in NOT_BEFORE_PEOPLE


def _opener(form: str) -> bool:
    return form in OPENERS or zipf(form) >= _FUNCTION_WORD


def _name_after(text: str, end: int) -> bool:
    match = _AFTER.match(text, end)
    if match is None or not match[1][:1].isupper():
        # "Walker, Texas Ranger"
        return _TITLE_AFTER.match(text, end) is not None
    form = mask_form(match[1])
    return form not in GENERATIONS and not (len(form) == 1 and form == "i")


def _same(word: str, name: str) -> bool:
    """Whether one given name is the other, its beginning, its initial, or a usual short form of it."""
    if word == name:
        return True
    short, long = sorted((word, name), key=len)
    if len(short.replace(" ", "")) == 1:
        return long.startswith(short)
    if len(short) >= _SHARED_LETTERS and long[:_SHARED_LETTERS] == short[:_SHARED_LETTERS]:
        return True
    return any(word in group and name in group for group in SAME_NAME)


def _compound(text: str, span: Span) -> bool:
    """Whether the word goes on behind a hyphen: "King-size", "Martin-King"."""
    start, end = span
    after = end < len(text) - 1 and text[end] in "-\u2010\u2011" and text[end + 1].isalnum()
    return after or (start > 1 and text[start - 1] in "-\u2010\u2011" and text[start - 2].isalnum())


def _capital(word: str) -> bool:
    letter = next((character for character in word if character.isalpha()), "")
    return bool(letter) and letter == letter.upper() and letter != letter.lower()


def _sentence(text: str, span: Span) -> Span:
    """The sentence around `span`, at most so many characters to each side; the point of an initial ends none."""
    start, end = span
    left = max(0, start - _LONGEST_SENTENCE)
    for match in _SENTENCE_END.finditer(text, left, start):
        if not _abbreviated(text, match.start()):
            left = match.end()
    right = min(len(text), end + _LONGEST_SENTENCE)
    for match in _SENTENCE_END.finditer(text, end, right):
        if not _abbreviated(text, match.start()):
            right = match.start() + 1
            break
    while left < start and text[left].isspace():
        left += 1
    return left, right


def _abbreviated(text: str, position: int) -> bool:
    if text[position] != ".":
        return False
    word = re.search(r"[\w.]*$", text[max(0, position - 12) : position])
    form = mask_form(word.group()) if word else ""
    return len(form) == 1 or form in TITLES or form in ("jr", "sr", "st", "vs", "no")
