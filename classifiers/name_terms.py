"""What the automata of names search for: a target's forms in strong form, and how each may stand in a text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from guard.classifiers.name_forms import NameForm, NameForms, name_forms
from guard.classifiers.normalize import mask_form, strong_form
from guard.policy import Target

# strong-form letters from which a name needs one word boundary only, and from which its disguises are searched too
LONG = 8
MIN_ALIAS = 2
MIN_PART = 4
_NO_BREAKS: frozenset[int] = frozenset()
# name: as the operator wrote it; derived: a form of it; part: a single part, judged by where it stands;
# place: no evidence, only a place to corrupt once the target is touched
Role = Literal["name", "disguise", "derived", "part", "place"]


@dataclass(frozen=True, slots=True)
class Term:
    """One searched string of a target: its strong form's length and inner word breaks, and what a match means.

    `given` are the target's given names in mask form, where the term is a surname.
    """

    target: int
    length: int
    breaks: frozenset[int]
    role: Role = "name"
    form: NameForm | None = None
    given: frozenset[str] = frozenset()


def terms_of(number: int, target: Target) -> Iterator[tuple[str, Term]]:
    """All searched strings of target `number` with what they mean; some may be too short to search for."""
    names = name_forms(target)
    seen: set[str] = set()
    # a rare part is found by itself, and with it every form that holds it
    rare = {mask_form(text) for text in names.distinctive}
    for form in names.forms:
        if form.written and form.certainty == "certain":
            yield from _written(number, form.text)
        elif form.part == "whole" and form.certainty == "certain":
            if not rare.intersection(mask_form(form.text).split()):
                yield _term(number, form.text, "derived")
        else:
            seen.add(strong_form(form.text))
            yield _term(number, form.text, "part", form, _given(names, form))
    for part in name_parts(target.name):
        if (strong := strong_form(part)) not in seen:
            yield strong, Term(number, len(strong), _NO_BREAKS, "place")


def name_parts(name: str) -> tuple[str, ...]:
    """Single words of a name of several words, too short ones left out."""
    words = [word for word in re.split(r"\s+", name.strip()) if word]
    if len(words) < 2:
        return ()
    return tuple(word for word in words if len(strong_form(word)) >= MIN_PART)


def _written(number: int, alias: str) -> Iterator[tuple[str, Term]]:
    strong, term = _term(number, alias, "name")
    yield strong, term
    if len(strong) >= LONG:
        yield strong[::-1], Term(number, len(strong), _NO_BREAKS, "disguise")
        rotated = strong_form(codecs.encode(alias, "rot13"))
        yield rotated, Term(number, len(rotated), _NO_BREAKS, "disguise")


def _term(
    number: int, text: str, role: Role, form: NameForm | None = None, given: frozenset[str] = frozenset()
) -> tuple[str, Term]:
    words = [strong_form(word) for word in re.split(r"[^\w]+|_", text)]
    breaks, position = set(), 0
    for word in words[:-1]:
        position += len(word)
        breaks.add(position)
    strong = strong_form(text)
    return strong, Term(number, len(strong), frozenset(breaks), role, form, given)


def _given(names: NameForms, form: NameForm) -> frozenset[str]:
    if form.part != "surname":
        return frozenset()
    return frozenset(mask_form(word) for person in names.people for word in person.given)
