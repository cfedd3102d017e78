"""What a target's name names: set by the operator, or guessed from its spelling, description and examples.

A guess looks at what the operator wrote and nothing else; the same target always gives the same kind. In doubt a
capitalised name is a person's and a lower-case phrase a topic: the first is masked where it need not be, and
the second is what nobody capitalises.
"""

from __future__ import annotations

import re

from guard.classifiers.name_words import (
    ARTICLES,
    COMPANY_SUFFIXES,
    DESCRIBED,
    ORGANISATION_WORDS,
    PLACE_FIRST,
    PLACE_LAST,
    SENTENCE_VERBS,
    SMALL_WORDS,
    TITLES,
    WORK_WORDS,
)
from guard.classifiers.normalize import SEPARATOR, mask_form
from guard.policy import Kind, Target

_QUOTED = re.compile(r"^\s*[\"'\u201c\u2018\u00ab].+[\"'\u201d\u2019\u00bb]\s*$")
# the end of a description's first statement, which says what the target is
_FIRST_STATEMENT = re.compile(r"[.;:!?\n]|\b(?:who|which|that|whose|where|known|famous|best)\b")
_INITIAL = re.compile(r"^(?:[^\W\d_]\.){1,3}$")
_SHORT_FACT = 4
_MANY_WORDS = 5
_QUESTIONS: tuple[tuple[str, Kind], ...] = (
    (r"\b(?:who (?:is|was)|when was|where was) {name}(?:'s)?(?: born)?(?!\w)", "person"),
    (r"\bwho (?:wrote|directed|composed|painted|sings|sang|recorded) {name}", "work"),
    (r"\bwho (?:founded|owns|runs) {name}", "organisation"),
    (r"\b(?:where is|capital of|population of|how far is) {name}", "place"),
)


def kind_of(target: Target) -> Kind:
    """The kind that the operator set, or the one that the target looks like."""
    if target.kind is not None:
        return target.kind
    if target.verbatim:
        return "text"
    name = target.name.strip()
    return _of_spelling(name) or _of_description(target.description) or _of_examples(target) or _in_doubt(name)


def looks_like_person(name: str) -> bool:
    """Whether `name` is spelled like a person's: two to five capitalised words, initials and particles allowed."""
    words = name.split()
    if not 2 <= len(words) <= _MANY_WORDS or not words[0][:1].isupper() or any(map(_has_digit, words)):
        return False
    forms = [mask_form(word) for word in words]
    if forms[0] in ARTICLES or any(form in COMPANY_SUFFIXES | ORGANISATION_WORDS for form in forms[1:]):
        return False
    small = [form for word, form in zip(words, forms, strict=True) if word[:1].islower()]
    return not any(form in ("of", "the", "and", "in", "on", "to", "for", "with") for form in small)


def has_case(text: str) -> bool:
    """Whether `text` holds a letter of a script with upper and lower case."""
    return text.lower() != text.upper()


def _of_spelling(name: str) -> Kind | None:
    words = name.split()
    forms = [mask_form(word) for word in words]
    if not has_case(name):
        return None
    if len(words) >= _SHORT_FACT and any(
        form in SENTENCE_VERBS and word.islower() for word, form in zip(words[1:], forms[1:], strict=True)
    ):
        return "fact"
    if name == name.lower() and not any(map(_has_digit, words[:1])):
        return "topic"
    if forms[-1] in COMPANY_SUFFIXES and len(words) > 1:
        return "organisation"
    if _QUOTED.match(name) or (":" in name and len(words) > 2) or forms[-1] in WORK_WORDS:
        return "work"
    return _of_words(name, words, forms)


def _of_words(name: str, words: list[str], forms: list[str]) -> Kind | None:
    if forms[0] in TITLES and len(words) > 1:
        return "person"
    if len(words) == 1:
        return "organisation" if 2 <= len(name) <= 5 and name.isupper() and name.isalpha() else None
    if any(form in ORGANISATION_WORDS for form in forms):
        return "organisation"
    if forms[0] in PLACE_FIRST or forms[-1] in PLACE_LAST:
        return "place"
    if forms[0] in ARTICLES and words[0][:1].isupper():
        return "work"
    small = sum(word.islower() and form in SMALL_WORDS for word, form in zip(words, forms, strict=True))
    if small and not looks_like_person(name) and "," not in name:
        # "Gone with the Wind"; a phrase with one capital, "History of medicine", is a topic
        capitals = sum(word[:1].isupper() for word in words)
        return "work" if capitals >= 2 else "topic"
    if sum(word[:1].islower() for word in words) > len(words) // 2:
        return "topic"
    return None


def _of_description(description: str) -> Kind | None:
    """What the first statement of a description calls the target: its last known word, "film director"."""
    if not description:
        return None
    statement = _FIRST_STATEMENT.split(description, maxsplit=1)[0] or description
    words = mask_form(statement).split(SEPARATOR)
    # what follows "of", "by" or "from" is another thing: "a novel by the writer X"
    for position, word in enumerate(words):
        if position and word in ("of", "by", "from", "in", "for", "with", "about"):
            words = words[:position]
            break
    for word in reversed(words):
        for kind, known in DESCRIBED.items():
            if word in known:
                return kind  # type: ignore[return-value]
    return None


def _of_examples(target: Target) -> Kind | None:
    name = re.escape(target.name.casefold())
    for question in target.examples[:50]:
        text = question.casefold()
        for pattern, kind in _QUESTIONS:
            if re.search(pattern.format(name=name), text):
                return kind
    return None


def _in_doubt(name: str) -> Kind:
    words = name.split()
    if any(_INITIAL.match(word) for word in words):
        return "person"
    if len(words) > _MANY_WORDS:
        return "work"
    return "person"


def _has_digit(word: str) -> bool:
    return any(character.isdigit() for character in word)
