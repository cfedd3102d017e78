"""The parts of a person's name: given names, surname with its particles, and what stands before and after."""

from __future__ import annotations

import re
from dataclasses import dataclass

from guard.classifiers.name_words import FAMILY_FIRST, GENERATIONS, PARTICLES, RANKS, TITLES
from guard.classifiers.normalize import mask_form

_QUOTED = re.compile(r"\s*[\"'\u201c\u2018(]([^\"'\u201d\u2019)]+)[\"'\u201d\u2019)](?!\w)\s*")
_INITIALS = re.compile(r"^(?:[^\W\d_]\.?-?){1,3}$")
_MOST_WORDS = 7


@dataclass(frozen=True, slots=True)
class PersonName:
    """`given` words in order (initials among them), the `surname` with particles, its `head` without them.

    `family_first` says that the surname was written first, as in "Xi Jinping".
    """

    given: tuple[str, ...]
    surname: str
    head: str
    family_first: bool = False

    @property
    def first(self) -> str:
        """The given name that people use."""
        return next((word for word in self.given if not is_initial(word)), "")


def split_person(name: str) -> PersonName | None:
    """The parts of `name`; None for one that cannot be split: one word, digits, a script without case."""
    text = _QUOTED.sub(" ", _turned(name)).strip()
    words = [word.strip(",;") for word in text.split()]
    words = [word for word in words if mask_form(word)]
    while len(words) > 1 and mask_form(words[0]).rstrip() in TITLES:
        words = words[1:]
    while len(words) > 1 and mask_form(words[-1]) in GENERATIONS:
        words = words[:-1]
    if not 2 <= len(words) <= _MOST_WORDS or any(not _is_latin(word) for word in words):
        return None
    if _family_first(words):
        return PersonName(tuple(words[1:]), words[0], words[0], family_first=True)
    start = len(words) - 1
    while start > 1 and mask_form(words[start - 1]) in PARTICLES and not is_initial(words[start - 1]):
        start -= 1
    return PersonName(tuple(words[:start]), " ".join(words[start:]), words[-1])


def other_names(name: str) -> tuple[str, ...]:
    """Names of their own inside `name`: before and after a comma that leads to a rank; a quoted nickname is not."""
    before, comma, after = name.partition(",")
    if comma and _rank(after):
        return before.strip(), after.strip()
    return ()


def is_initial(word: str) -> bool:
    """Whether a word is one to three initials: "D.", "J.R."; "Al" is not."""
    if "." in word:
        return bool(_INITIALS.match(word))
    return len(word) == 1 or (len(word) == 2 and word.isupper())


def _turned(name: str) -> str:
    """ "Surname, First" the other way round; a rank or a generation after the comma is left out."""
    before, comma, after = name.partition(",")
    if not comma or not after.strip():
        return name.strip(" ,")
    forms = mask_form(after).split()
    if _rank(after) or forms[:1] and forms[0] in GENERATIONS:
        return before.strip()
    return f"{after.strip()} {before.strip()}"


def _rank(part: str) -> bool:
    return bool(RANKS.intersection(mask_form(part).split()[:2]))


def _family_first(words: list[str]) -> bool:
    first, last = mask_form(words[0]), mask_form(words[-1])
    return len(words) <= 3 and first in FAMILY_FIRST and last not in FAMILY_FIRST and (
        "-" in words[-1] or len(words) == 3 or first not in ("lee", "park", "kim", "song", "moon", "han", "sun", "he")
    )


def _is_latin(word: str) -> bool:
    if word.isascii() and word.isalpha():
        return True
    letters = [character for character in mask_form(word) if character.isalpha()]
    return bool(letters) and all("a" <= letter <= "z" or letter in "łøđħßæœþðıŋ" for letter in letters) and not any(
        character.isdigit() for character in word
    )
