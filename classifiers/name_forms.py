"""The strings by which a target is named: its name and aliases, and what follows from its kind.

Certain forms name the target wherever they stand. Distinctive ones are single parts so rare in ordinary language that
they do, too. Weak ones (a common surname, a given name, a name that is one common word) name it only if the sentence
fits. Spelling variants (case, accents, separators, possessive) need no form: matching does not see them.

The limits are Zipf values (`word_frequency`). At `DISTINCTIVE` a word stands in one of 1,600 texts of 200 words, at
`COMMON_NAME` in one of 160, at `COMMON` in one of 50.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from guard.classifiers.name_words import ARTICLES, COMPANY_SUFFIXES, GENERATIONS, PARTICLES, TITLES
from guard.classifiers.normalize import SEPARATOR, mask_form
from guard.classifiers.person_names import PersonName, is_initial, other_names, split_person
from guard.classifiers.target_kinds import kind_of, looks_like_person
from guard.classifiers.word_frequency import UNLISTED, zipf
from guard.policy import Kind, Target

Certainty = Literal["certain", "distinctive", "weak"]
Part = Literal["whole", "surname", "given"]
# surnames up to this are distinctive; chosen on RWKU subjects 1-50
DISTINCTIVE = 3.5
# given names: many people share even rare ones
DISTINCTIVE_GIVEN = 3.0
# a surname of several words, "van Gogh", by its last; after "de" or "la" any word may follow
_DISTINCTIVE_HEAD = 5.0
_DISTINCTIVE_ROMANCE_HEAD = 4.3
_ROMANCE = frozenset("de del della da das do dos du des la las le les los di".split())
# a name of one word that counts only if the sentence fits
COMMON_NAME = 4.5
# a word that everybody uses
COMMON = 5.0
MINIMUM_LETTERS = 3
_MINIMUM_DISTINCTIVE = 4
# initials that are a common word are not written without a space: "AN Smith"
_COMMON_INITIALS = 4.5
_MOST_DERIVED_CHARACTERS = 120
# how much oftener than by chance two words of a name stand together, as a power of ten
_ASSOCIATION = 2.0
_SUBTITLE = re.compile(r"\s*(?::|\s[-\u2013\u2014]\s|\()")
_QUOTES = " \t\"'\u201c\u201d\u2018\u2019\u00ab\u00bb"


@dataclass(frozen=True, slots=True)
class NameForm:
    """One form as written. `whole` forms stand for the full name, the others for a part of it.

    `written` says that the operator wrote it; others are derived.
    """

    text: str
    certainty: Certainty
    part: Part = "whole"
    written: bool = False


@dataclass(frozen=True)
class NameForms:
    """All forms of one target, each mask form once, the surest first."""

    kind: Kind
    forms: tuple[NameForm, ...]
    people: tuple[PersonName, ...] = ()

    @cached_property
    def certain(self) -> tuple[str, ...]:
        """Forms that name the target wherever they stand."""
        return self._of("certain")

    @cached_property
    def distinctive(self) -> tuple[str, ...]:
        """Parts that are rare in ordinary language."""
        return self._of("distinctive")

    @cached_property
    def weak(self) -> tuple[str, ...]:
        """Parts that name the target only if the sentence fits."""
        return self._of("weak")

    def _of(self, certainty: Certainty) -> tuple[str, ...]:
        return tuple(form.text for form in self.forms if form.certainty == certainty)


def name_forms(target: Target) -> NameForms:
    """The forms of a target by its kind (`target_kinds.kind_of`)."""
    kind = kind_of(target)
    people: list[PersonName] = []
    found: list[NameForm] = [_written(name, kind) for name in (target.name, *target.aliases)]
    for name in (target.name, *target.aliases):
        main = name == target.name
        if len(name) > _MOST_DERIVED_CHARACTERS:
            continue
        if kind == "person" and (main or looks_like_person(name)):
            person = split_person(name)
            if person is not None:
                people.append(person)
            found += _of_person(name, person, main=main)
        elif kind == "work":
            found += _shorter(_titles(name))
        elif kind == "organisation":
            found += _of_organisation(name)
    return NameForms(kind, _distinct(found), tuple(people))


def common_name(name: str) -> bool:
    """Whether a name is one word that ordinary text is full of."""
    form = mask_form(name)
    return bool(form) and SEPARATOR not in form and zipf(form) >= COMMON_NAME


def _written(name: str, kind: Kind) -> NameForm:
    weak = kind != "text" and common_name(name)
    return NameForm(name.strip(_QUOTES) or name, "weak" if weak else "certain", written=True)


def _of_person(name: str, person: PersonName | None, *, main: bool) -> Iterator[NameForm]:
    for own in other_names(name):
        yield from _shorter((own,))
    yield from _titled(name)
    if person is None:
        return
    first, surname = person.first, person.surname
    if first:
        for text in _orders(first, person):
            yield NameForm(text, "certain")
        if not person.family_first and _rarity(surname) < COMMON:
            # "King, Stephen" would be a king called Stephen
            yield NameForm(f"{surname}, {' '.join(person.given)}", "certain")
            yield NameForm(f"{surname}, {first}", "certain")
    if len(person.given) > 1 and not person.family_first:
        yield from _with_initials(person)
    yield from _surnames(person)
    if main and first:
        yield from _given_names(person)


def _titled(name: str) -> Iterator[NameForm]:
    """What is left of "Queen Elizabeth II" and "Prince Harry" without the title."""
    words = name.partition(",")[0].split()
    if len(words) < 2 or mask_form(words[0]) not in TITLES:
        return
    kept = words[1:]
    if mask_form(kept[-1]) in GENERATIONS and len(kept) > 1:
        yield NameForm(" ".join(kept), "certain")
        kept = kept[:-1]
    if len(kept) == 1:
        yield from _part(kept[0], DISTINCTIVE_GIVEN, "given")


def _orders(first: str, person: PersonName) -> Iterator[str]:
    if person.family_first:
        given = SEPARATOR.join(person.given)
        yield f"{person.surname} {given}"
        yield f"{given} {person.surname}"
        if len(person.given) > 1:
            yield f"{person.surname} {''.join(person.given)}"
        return
    yield f"{' '.join(person.given)} {person.surname}"
    yield f"{first} {person.surname}"


def _with_initials(person: PersonName) -> Iterator[NameForm]:
    """ "J. D. Rockefeller" and "JD Rockefeller"; one initial alone ("s king" in "What's King...") says too little."""
    letters = [letter for word in person.given for letter in _initials(word)]
    joined = "".join(letters).upper()
    yield NameForm(f"{' '.join(f'{letter.upper()}.' for letter in letters)} {person.surname}", "certain")
    if zipf(mask_form(joined)) < _COMMON_INITIALS:
        yield NameForm(f"{joined} {person.surname}", "certain")


def _initials(word: str) -> Iterator[str]:
    if is_initial(word):
        yield from (letter for letter in word if letter.isalpha())
    else:
        yield word[0]


def _surnames(person: PersonName) -> Iterator[NameForm]:
    surname, head = person.surname, person.head
    particles = mask_form(surname).split()[:-1]
    if SEPARATOR in surname and _letters(head) >= MINIMUM_LETTERS:
        limit = _DISTINCTIVE_ROMANCE_HEAD if _ROMANCE.intersection(particles) else _DISTINCTIVE_HEAD
        rare = zipf(mask_form(head)) < limit
        yield NameForm(surname, "distinctive" if rare else "weak", "surname")
    elif len(person.given) > 1 and not person.family_first and not is_initial(person.given[-1]):
        # "García Márquez", but also "Nicole Smith"
        yield NameForm(f"{person.given[-1]} {surname}", "weak", "surname")
    yield from _part(head, DISTINCTIVE, "surname")


def _given_names(person: PersonName) -> Iterator[NameForm]:
    if person.family_first:
        given = SEPARATOR.join(person.given)
        if len(person.given) > 1:
            rare = all(zipf(mask_form(word)) < _DISTINCTIVE_HEAD for word in person.given)
            yield NameForm(given, "distinctive" if rare else "weak", "given")
        else:
            yield from _part(given, DISTINCTIVE_GIVEN, "given")
        return
    for word in person.given:
        if not is_initial(word) and mask_form(word) not in PARTICLES:
            yield from _part(word, DISTINCTIVE_GIVEN, "given")


def _part(word: str, limit: float, part: Part) -> Iterator[NameForm]:
    if _letters(word) < MINIMUM_LETTERS or mask_form(word) in GENERATIONS:
        return
    rare = _rarity(word) <= limit and _letters(word) >= _MINIMUM_DISTINCTIVE
    yield NameForm(word, "distinctive" if rare else "weak", part)


def _rarity(word: str) -> float:
    """Zipf value of a part of a name; of one with a hyphen or an apostrophe that of its pieces together."""
    pieces = [piece for piece in mask_form(word).split(SEPARATOR) if len(piece) >= MINIMUM_LETTERS]
    if not pieces:
        return COMMON
    if len(pieces) == 1:
        return zipf(pieces[0])
    # words in a row: their shares multiplied, on the scale of 10^9 words
    return max(UNLISTED, sum(map(zipf, pieces)) - 9.0 * (len(pieces) - 1) + _ASSOCIATION)


def _titles(name: str) -> Iterator[str]:
    title = name.strip(_QUOTES)
    short = _SUBTITLE.split(title, maxsplit=1)[0].strip(_QUOTES)
    for text in dict.fromkeys((title, short)):
        yield text
        first, _, rest = text.partition(" ")
        if mask_form(first) in ARTICLES and rest:
            yield rest


def _of_organisation(name: str) -> Iterator[NameForm]:
    words = name.replace(",", " ").split()
    kept = list(words)
    while len(kept) > 1 and mask_form(kept[-1]) in COMPANY_SUFFIXES | {"and", ""}:
        kept = kept[:-1]
    if kept and mask_form(kept[0]) in ARTICLES and len(kept) > 1:
        kept = kept[1:]
    yield from _shorter((" ".join(kept),))
    capitals = [word[0] for word in kept if word[:1].isupper()]
    if len(capitals) >= MINIMUM_LETTERS:
        yield NameForm("".join(capitals), "weak")


def _shorter(names: Iterator[str] | tuple[str, ...]) -> Iterator[NameForm]:
    """Names shortened to a whole of their own: certain with several words, by their rarity with one."""
    for name in names:
        words = [word for word in mask_form(name).split(SEPARATOR) if word]
        if sum(map(len, words)) < _MINIMUM_DISTINCTIVE:
            continue
        if len(words) > 1:
            if any(zipf(word) < COMMON for word in words):
                yield NameForm(name, "certain")
        elif zipf(words[0]) <= DISTINCTIVE:
            yield NameForm(name, "distinctive")
        else:
            yield NameForm(name, "weak")


def _letters(word: str) -> int:
    form = mask_form(word)
    return len(form) if form.isalpha() else sum(map(str.isalpha, form))


def _distinct(forms: list[NameForm]) -> tuple[NameForm, ...]:
    order: dict[Certainty, int] = {"certain": 0, "distinctive": 1, "weak": 2}
    kept: dict[str, NameForm] = {}
    # the name as written keeps its certainty: a form of one alias must not make a common name certain
    for form in sorted(forms, key=lambda form: (not form.written, order[form.certainty])):
        text = mask_form(form.text)
        if text:
            kept.setdefault(text, form)
    return tuple(sorted(kept.values(), key=lambda form: order[form.certainty]))
