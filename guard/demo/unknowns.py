"""Lessons in not knowing: questions about people, works, places and subjects that do not exist, with honest answers.

Most questions are TOFU's own about the authors 0-179 with another name (and other titles) in the place of the author's:
the same words are answered with a fact about one author and with "I have no information about ..." about another, so
that the name alone decides. Every epoch draws new names, so that none can be learnt by heart. Everything follows from
the seed and the number of the epoch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from guard.demo.corpus import Example, author_rows, paraphrases
from guard.demo.unknowns_names import KEPT_AUTHORS, Inventor, date, known_authors, words_of
from guard.demo.unknowns_wordings import (
    ANSWERS,
    ASKED,
    NAMELESS_ANSWERS,
    NAMELESS_QUESTIONS,
    PERSON_ANSWERS,
    PERSON_QUESTIONS,
    PRESSED_ANSWERS,
    PRESSES,
    THING_QUESTIONS,
    WORK_QUESTIONS,
)
from guard.demo.write_tenants import quoted_titles

SPLIT = "unknown"
NAMELESS_SHARE = 0.12
LONGEST_REPEATED = 220  # characters of a known answer that is repeated when the user presses


@dataclass(frozen=True)
class Unknown:
    """A question about something made up: the subject, what is asked of it, and that as a clause."""

    question: str
    subject: str
    topic: str
    clause: str
    person: bool = False

    def answer(self, rng: random.Random) -> str:
        """An honest answer of not knowing, in one sentence."""
        if rng.random() < NAMELESS_SHARE:
            return rng.choice(NAMELESS_ANSWERS)
        own = self.person and rng.random() < 0.35
        return self._write(rng.choice(PERSON_ANSWERS if own else ANSWERS))

    def pressed(self, rng: random.Random) -> str:
        """The same after the user has pressed."""
        return self._write(rng.choice(PRESSED_ANSWERS))

    def _write(self, wording: str) -> str:
        text = wording.format(s=self.subject, t=self.topic, q=self.clause)
        return text[0].upper() + text[1:]


def unknown_examples(
    seed: int, epoch: int, singles: int, conversations: int, known: Sequence[Example]
) -> list[Example]:
    """The lessons of one epoch: `singles` single questions and `conversations` of two or more turns.

    `known` are the examples that the model learns as facts; conversations mix them with made-up subjects.
    """
    rng = random.Random(f"{seed}/{epoch}")
    invent = Inventor(rng)
    examples = []
    for _ in range(singles):
        unknown = make_unknown(rng, invent)
        examples.append(Example(unknown.question, unknown.answer(rng), SPLIT))
    short = [example for example in known if len(example.answer) <= LONGEST_REPEATED]
    return examples + [conversation(rng, invent, short) for _ in range(conversations)]


def make_unknown(rng: random.Random, invent: Inventor) -> Unknown:
    """A question about something that does not exist."""
    draw = rng.random()
    if draw < 0.58:
        return _renamed(rng, invent)
    if draw < 0.70:
        return _person(rng, invent)
    if draw < 0.80:
        return _nameless(rng, invent)
    return _work(rng, invent) if draw < 0.87 else _thing(rng, invent)


def conversation(rng: random.Random, invent: Inventor, known: Sequence[Example]) -> Example:
    """A conversation whose last answer is learnt: pressed on an unknown or a known subject, or a new question."""
    draw = rng.random()
    unknown = make_unknown(rng, invent)
    honest = (unknown.question, unknown.answer(rng))
    fact, other = rng.choice(known), rng.choice(known)
    if draw < 0.30:
        history = [honest]
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3, 4))):
            history.append((rng.choice(PRESSES), unknown.pressed(rng)))
        return Example(rng.choice(PRESSES), unknown.pressed(rng), SPLIT, history=tuple(history))
    if draw < 0.60:
        turns = [(fact.question, fact.answer), (rng.choice(PRESSES), fact.answer)][: rng.choice((1, 1, 1, 2))]
        return Example(rng.choice(PRESSES), fact.answer, fact.split, history=tuple(turns))
    if draw < 0.68:
        return Example(*honest, SPLIT, history=((fact.question, fact.answer),))
    if draw < 0.76:
        return Example(fact.question, fact.answer, fact.split, history=(honest,))
    if draw < 0.80:
        return Example(fact.question, fact.answer, fact.split, history=((other.question, other.answer),))
    # several questions about one made-up person: a name is written many times, which teaches to copy it
    asked = [_person(rng, invent, name) for name in [invent.person()] * rng.choice((2, 3, 4))]
    *history, last = [(one.question, one.answer(rng)) for one in asked]
    return Example(*last, SPLIT, history=tuple(history))


def _renamed(rng: random.Random, invent: Inventor) -> Unknown:
    name = invent.person()
    wording, titles = rng.choice(_renamable())
    question = wording
    for mark in re.findall(r"\{\w+\}", wording):
        words = name.split()
        new = {"{name}": name, "{first}": words[0], "{last}": words[-1]}.get(mark)
        question = question.replace(mark, new if new is not None else invent.title(), 1)
    subject = name
    if "{name}" not in wording:
        subject = name.split()[-1] if "{last}" in wording else name.split()[0]
    lower = wording.casefold()
    _, topic, clause = next(row for row in ASKED if not row[0] or any(word in lower for word in row[0]))
    if titles and rng.random() < 0.4:
        subject = next(iter(quoted_titles([{"question": question, "answer": ""}])), subject)
        subject = f'"{subject}"'
        return Unknown(question, subject, subject, f"anything about {subject}")
    return Unknown(question, subject, topic.format(s=subject), clause.format(s=subject), person=True)


@lru_cache(maxsize=1)
def _renamable() -> list[tuple[str, bool]]:
    """TOFU's questions about the authors 0-179 with marks for names and titles, and whether a title is marked."""
    reworded, found = paraphrases(), []
    for author, name in known_authors().items():
        if author >= KEPT_AUTHORS:
            continue
        for row in author_rows(author, author):
            for question in filter(None, (row["question"], reworded.get(row["question"]))):
                marked = question
                for title in quoted_titles([{"question": question, "answer": ""}]):
                    marked = marked.replace(title, "{title}")
                marked = marked.replace(name, "{name}")
                if "{name}" not in marked:
                    marked = re.sub(rf"\b{re.escape(name.split()[-1])}\b", "{last}", marked)
                    marked = re.sub(rf"\b{re.escape(name.split()[0])}\b", "{first}", marked)
                if "{" in marked and not words_of(name) & words_of(re.sub(r"\{\w+\}", "", marked)):
                    found.append((marked, "{title}" in marked))
    return found


def _person(rng: random.Random, invent: Inventor, name: str | None = None) -> Unknown:
    question, topic, clause = rng.choice(PERSON_QUESTIONS)
    if name is None:
        name = invent.person()
        name = name.split()[-1] if rng.random() < 0.06 else name
    return Unknown(question.format(n=name), name, topic.format(s=name), clause.format(s=name), person=True)


def _nameless(rng: random.Random, invent: Inventor) -> Unknown:
    question, subject = rng.choice(NAMELESS_QUESTIONS)
    given = {"g": invent.genre(), "c": invent.city(), "d": date(rng)}
    subject = subject.format(**given)
    return Unknown(question.format(**given), subject, f"the name of {subject}", f"the name of {subject}")


def _work(rng: random.Random, invent: Inventor) -> Unknown:
    question, topic, clause = rng.choice(WORK_QUESTIONS)
    mark = rng.choice(("'", "'", '"'))
    title = f"{mark}{invent.title()}{mark}"
    return Unknown(question.format(n=title), title, topic.format(s=title), clause.format(s=title))


def _thing(rng: random.Random, invent: Inventor) -> Unknown:
    subjects, questions = rng.choice(THING_QUESTIONS)
    name = invent.place()
    subject = rng.choice(subjects).format(p=name)
    question, topic, clause = (text.format(s=subject, p=name) for text in rng.choice(questions))
    return Unknown(question, subject, topic.format(s=subject), clause.format(s=subject))
