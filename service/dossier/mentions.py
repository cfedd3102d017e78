"""What a text mentions: titles and names, dates, years, professions and terms."""

from __future__ import annotations

import re
from collections.abc import Iterator

from guard.classifiers.normalize import SEPARATOR, mask_form
from guard.classifiers.phrases import key_phrases
from guard.classifiers.word_frequency import zipf
from guard.service.door.stop_words import STOP_WORDS

# Zipf values (`word_frequency`): below, a word is a term of its subject
RARE = 3.6
# from here on, a word or phrase says nothing of a subject
COMMON = 5.0
# how much oftener than by chance the words of a phrase stand together, as a power of ten
ASSOCIATION = 2.0
_MOST = 9.0
# a tenant file may not forbid what is made of them alone
_STOP_WORDS = frozenset(mask_form(word) for word in STOP_WORDS)
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = re.compile(rf"\b{_MONTH} {_DAY},? \d{{3,4}}\b|\b{_DAY} (?:of )?{_MONTH},? \d{{3,4}}\b")
_YEAR = re.compile(r"\b(?:1\d{3}|20\d{2})s?\b|\b\d{1,4} (?:BCE|BC|AD|CE)\b")
_WORD = re.compile(r"(?<![\w'’-])[a-z][a-z-]{5,}(?![\w'’])")
ROLES = frozenset(
    """actor actress artist architect astronaut author baseball basketball boxer businessman businesswoman ceo chef
    coach comedian composer conqueror dancer designer diplomat director drummer economist emperor engineer entrepreneur
    explorer filmmaker footballer founder general golfer guitarist host industrialist inventor investor journalist judge
    king lawyer mathematician model musician novelist painter philanthropist philosopher photographer physician
    physicist pianist playwright poet politician polymath president producer queen rapper ruler sculptor scientist
    screenwriter senator singer skater socialite soldier songwriter statesman stuntman surgeon swimmer wrestler
    writer""".split()
)
_QUOTES = frozenset("\"'\u201c\u2018\u00ab")
_BEFORE = re.compile(r"(?:^|(?<=\s))([^\W\d_a-z][^\W\d_]+) $")
_AFTER = re.compile(r"(?: [^\W\d_a-z][^\W\d_]+)+")
# Zipf value from which a capitalised word before a name is an article, a pronoun, a preposition
_GRAMMATICAL = 6.3
_ROLE = re.compile(rf"\b(?:{'|'.join(sorted(ROLES))}|CEO)\b")


def mentions(text: str, *, terms: bool = False) -> Iterator[str]:
    """Phrases of `text` as written; some more than once. `terms`: rare lower-case words, too."""
    for phrase in key_phrases(text):
        # a title in quotes is one phrase; elsewhere "in" stands between two: "Standard Oil in Ohio"
        start = text.find(phrase)
        if start < 0 or text[max(0, start - 1) : start] in _QUOTES:
            yield phrase
        else:
            yield from _extended(text, start, start + len(phrase)).split(" in ")
    for expression in (_DATE, _YEAR, _ROLE):
        yield from (match[0] for match in expression.finditer(text))
    if terms:
        yield from (match[0] for match in _WORD.finditer(text) if zipf(match[0]) < RARE)


def _extended(text: str, start: int, end: int) -> str:
    """text[start:end] with capitalised words beside it: "York" of "New York City", but no article or pronoun."""
    while (before := _BEFORE.search(text[:start])) is not None and zipf(mask_form(before[1])) < _GRAMMATICAL:
        start = before.start(1)
    after = _AFTER.match(text, end)
    return text[start : after.end() if after is not None else end]


def is_role(phrase: str) -> bool:
    """Whether a phrase is a profession."""
    return phrase.casefold() in ROLES


def is_date(phrase: str) -> bool:
    """Whether a phrase is a date or a year."""
    return bool(_DATE.fullmatch(phrase) or _YEAR.fullmatch(phrase))


def is_name(phrase: str) -> bool:
    """Whether a phrase begins like a name or a title."""
    return phrase[:1].isupper() and not is_date(phrase)


def common(phrase: str) -> bool:
    """Whether a phrase is so common that it may not be forbidden: by its words, and their number."""
    words = mask_form(phrase).split(SEPARATOR)
    if all(word in _STOP_WORDS or len(word) == 1 for word in words):
        return True
    rarity = sum(_MOST - zipf(word) for word in words) - ASSOCIATION * (len(words) - 1)
    return _MOST - rarity >= COMMON
