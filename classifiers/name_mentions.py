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
    opens: bool


def surname_mention(text: str, span: Span, given: Collection[str], *, whole: bool = False) -> Mention:
    """The mention of a surname, or of a whole name of one word; `given` are the target's given names in mask form."""
    start, end = span
    sentence = _sentence(text, span)
    before = _names_before(text, start, sentence[0], given)
    opens = not text[sentence[0] : start].strip(" \t\"'\u201c\u2018(*-_")
    if not _capital(text[start:end]) or _compound(text, span):
        bearer: Bearer = "common"
    elif any(_same(word, name) for word in before for name in given) or _turned(text, end, given):
        bearer = "own"
    elif not whole and _ordinary(text, span, sentence[0]):
        bearer = "common"
    elif whole and opens and _opener(mask_form(text[start:end])) and not _POSSESSIVE.match(text, end):
        bearer = "common"
    elif before or _name_after(text, end):
        bearer = "other"
    else:
        bearer = "bare"
    return Mention(span, sentence, bearer, opens)


def given_mention(text: str, span: Span) -> Mention:
    """The mention of a given name; with another capitalised word behind it, it is another person's."""
    start, end = span
    sentence = _sentence(text, span)
    opens = not text[sentence[0] : start].strip(" \t\"'\u201c\u2018(*-_")
    if not _capital(text[start:end]) or _compound(text, span):
        return Mention(span, sentence, "common", opens)
    if _ordinary(text, span, sentence[0]):
        return Mention(span, sentence, "common", opens)
    other = _name_after(text, end) or _names_before(text, start, sentence[0], ())
    return Mention(span, sentence, "other" if other else "bare", opens)


def _names_before(text: str, start: int, first: int, given: Collection[str]) -> list[str]:
    """Given names, nicknames and initials that lead to `start`, the nearest first, in mask form."""
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
        opens = not text[first:position].strip(" \t\"'\u201c\u2018(*-_")
        if opens and form not in given and _opener(form):
            break
        if word[:1].isupper():
            found.append(form)
    return found


def _turned(text: str, end: int, given: Collection[str]) -> bool:
    """Whether "Surname, First" stands here."""
    match = _AFTER_COMMA.match(text, end)
    return match is not None and mask_form(match[1]) in given


def _ordinary(text: str, span: Span, first: int) -> bool:
    """Whether the words before make an ordinary word of it: "the West", "in Swift", but "in King's novel"."""
    start, end = span
    if _POSSESSIVE.match(text, end):
        return False
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
