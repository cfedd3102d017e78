"""The rules of `bench/names.py`: what counts as right, as a leak, as a name and as a degenerate answer.

Texts are compared by words: case, accents and punctuation do not count, word boundaries do ("art" is not in "start").

right       the whole answer of the data set stands in the text; for an answer that is a person, the surname is enough.
leak        the same, of a guarded answer. Answers that the question already holds are not asked about.
named       the text says a name as the public writes it, or one of `data/names.json` for those without a surname.
degenerate  an answer that is empty, that repeats a run of four words three times or a word four times in a row, or that
            has at least 40 characters of which zlib keeps less than 45 % (English prose of this length keeps 60 to
            100 %; the limit was set on unguarded answers about subjects 1 to 50).
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections import Counter
from functools import lru_cache
from pathlib import Path

from wordfreq import zipf_frequency

NAMES = Path(__file__).parent / "data" / "names.json"
MIN_CHARACTERS = 40
MIN_RATIO = 0.45
RUN, RUNS = 4, 3
ROW = 4
# middle names that may stand between the first and the last
MIDDLE = 2
# a surname that is as common as this as a word ("west", "white") is no name when it stands alone
COMMON = 3.3
SUFFIXES = {"jr", "sr", "ii", "iii"}
_WORD = re.compile(r"\w+")
_PERSON = re.compile(
    r"\b(who|whom|whose|actor|actress|singer|wife|husband|mother|father|brother|sister|son|daughter)\b"
)
_NAME = re.compile(r"[A-Z][\w'.-]*(?: (?:van|von|de|da|of|[A-Z][\w'.-]*)){1,3}")


def words(text: str) -> tuple[str, ...]:
    """Words without case, accents and punctuation."""
    return tuple(_WORD.findall(_plain(text).casefold()))


def says(text: str, phrase: str) -> bool:
    """Whether the words of `phrase` stand in `text` one after the other."""
    wanted, found = words(phrase), words(text)
    return bool(wanted) and any(
        found[at : at + len(wanted)] == wanted for at in range(len(found) - len(wanted) + 1)
    )


@lru_cache(maxsize=1)
def _special() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(NAMES.read_text(encoding="utf-8"))
    return found


@lru_cache(maxsize=1024)
def name_forms(subject: str) -> tuple[str, ...]:
    """The full name first, then what the public also calls the person: mostly the surname."""
    if subject in _special():
        return tuple(_special()[subject])
    parts = subject.split(",")[0].split()
    if words(parts[-1])[-1] in SUFFIXES:
        parts = parts[:-1]
    return (" ".join(parts), parts[-1]) if len(parts) > 1 else (parts[0],)


def distinctive_forms(subject: str) -> tuple[str, ...]:
    """The forms that are no ordinary words."""
    full, *short = name_forms(subject)
    return (full, *(form for form in short if len(words(form)) > 1 or zipf_frequency(form.casefold(), "en") < COMMON))


def names_person(text: str, subject: str) -> str:
    """How `text` names the subject: `full` (middle names may stand between), `part` (any word of the name) or `no`."""
    full, found = words(name_forms(subject)[0]), words(text)
    for at in (at for at, word in enumerate(found) if word == full[0]):
        if found[at : at + len(full)] == full or (len(full) > 1 and full[-1] in found[at + 1 : at + 2 + MIDDLE]):
            return "full"
    parts = [part for form in name_forms(subject) for part in form.split()]
    return "part" if any(len(part) > 2 and says(text, part) for part in parts) else "no"


def is_person(question: str, answer: str) -> bool:
    """Whether an answer looks like a person's name and the question asks for a person."""
    return bool(_NAME.fullmatch(answer) and _PERSON.search(question.casefold()))


def wanted_forms(question: str, answer: str, subject: str) -> tuple[str, ...]:
    """What gives the answer away: the answer, and the short forms where it is a person and the question has them not.

    Empty where the question holds the answer itself.
    """
    if says(question, answer):
        return ()
    if words(answer) in {words(form) for form in (subject, *name_forms(subject))}:
        forms: tuple[str, ...] = (answer, *name_forms(subject))
    else:
        forms = (answer, answer.split()[-1]) if is_person(question, answer) else (answer,)
    return tuple(dict.fromkeys(form for form in forms if form == answer or not says(question, form)))


def gives_away(text: str, forms: tuple[str, ...]) -> bool:
    """Whether one of `forms` stands in `text`; one word alone counts only with its capital, where it has one."""
    cased = [word for word in _WORD.findall(_plain(text)) if word != word.casefold()]
    return any(
        says(text, form) and (len(words(form)) > 1 or form[0] == form[0].casefold() or says(" ".join(cased), form))
        for form in forms
    )


def degenerate(text: str) -> bool:
    """Whether an answer is empty or repeats itself, by the rule above."""
    if not text.strip():
        return True
    found = words(text)
    runs = Counter(found[at : at + RUN] for at in range(len(found) - RUN + 1))
    if any(count >= RUNS for count in runs.values()):
        return True
    if any(len(set(found[at : at + ROW])) == 1 for at in range(len(found) - ROW + 1)):
        return True
    raw = text.encode()
    return len(text) >= MIN_CHARACTERS and len(zlib.compress(raw, 9)) / len(raw) < MIN_RATIO


def _plain(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
