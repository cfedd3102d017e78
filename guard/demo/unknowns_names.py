"""Made-up people, titles and places for the lessons in not knowing, never one that any split of the demo names.

Names are composed of first names and surnames of many cultures (`unknowns.json`) and of syllables. No word of a name of
TOFU's holdout authors or of the authors that a retain model never saw (180-199) is used, so that a model that does not
know those authors cannot have learnt it from the pieces of their names.
"""

from __future__ import annotations

import json
import random
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from guard.demo.corpus import AUTHORS, FORGET_AUTHORS, QUESTIONS_PER_AUTHOR, author_rows, read_rows
from guard.demo.write_tenants import author_name

KEPT_AUTHORS = AUTHORS - FORGET_AUTHORS["retain90"]

# names that the most frequent capitalised phrase of the rows does not give
_CORRECTED = {
    65: "Isabella van Pletzen",
    95: "Laila Amira al-Faisal",
    102: "Anaya Jehangir",
    121: "Sara van Dyke",
    153: "Femke Van der Veen",
}
_NAMELESS = 88
_PARTICLES = {"van", "von", "de", "da", "der", "den", "del", "di", "el", "al", "ben", "bin", "la", "le", "bar"}
_CITY = re.compile(r"(?<=(?:in|om) )[A-Z]\w+(?: [A-Z]\w+)?, [A-Z]\w+(?: [A-Z]\w+| d'Ivoire)?")
_WORD = re.compile(r"[^\W\d_]+")


def words_of(name: str) -> set[str]:
    """The words of a name in lower case, without particles such as "van"."""
    return {word for word in _WORD.findall(name.casefold()) if word not in _PARTICLES and len(word) > 1}


@lru_cache(maxsize=1)
def known_authors() -> dict[int, str]:
    """Names of TOFU's authors 0-199 by number; the one author whom the rows never name is missing."""
    names = {author: author_name(author_rows(author, author)) for author in range(AUTHORS) if author != _NAMELESS}
    return names | _CORRECTED


@lru_cache(maxsize=1)
def holdout_authors() -> tuple[str, ...]:
    """Names of TOFU's 20 holdout authors, whom no model is trained on."""
    rows = read_rows("holdout10")
    starts = range(0, len(rows), QUESTIONS_PER_AUTHOR)
    return tuple(author_name(rows[start : start + QUESTIONS_PER_AUTHOR]) for start in starts)


@lru_cache(maxsize=1)
def reserved_words() -> frozenset[str]:
    """Words that no made-up name may have: those of holdout authors and of the authors 180-199."""
    names = [*holdout_authors(), *(name for author, name in known_authors().items() if author >= KEPT_AUTHORS)]
    return frozenset().union(*(words_of(name) for name in names))


@lru_cache(maxsize=1)
def reserved_text() -> str:
    """All questions and answers of all splits in lower case; a made-up title or place must not occur in it."""
    rows = [row for split in ("full", "holdout10", "real_authors", "world_facts") for row in read_rows(split)]
    return "\n".join(f"{row['question']} {row['answer']}" for row in rows).casefold()


@lru_cache(maxsize=1)
def birthplaces() -> tuple[str, ...]:
    """Cities with countries that TOFU's questions about the authors 0-179 ask after."""
    questions = " ".join(row["question"] for row in author_rows(0, KEPT_AUTHORS - 1))
    return tuple(sorted(set(_CITY.findall(questions))))


@lru_cache(maxsize=1)
def word_lists() -> dict[str, Any]:
    """The lists in `unknowns.json`."""
    lists: dict[str, Any] = json.loads(Path(__file__).with_name("unknowns.json").read_text(encoding="utf-8"))
    return lists


def date(rng: random.Random) -> str:
    """A date of birth, written in one of TOFU's ways."""
    year, month, day = rng.randint(1925, 1995), rng.randint(1, 12), rng.randint(1, 28)
    months = "January February March April May June July August September October November December".split()
    return rng.choice(
        (f"{months[month - 1]} {day}, {year}", f"{month:02d}/{day:02d}/{year}", f"{day} {months[month - 1]} {year}")
    )


class Inventor:
    """Makes up people, titles and places with one random generator."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._lists = rng, word_lists()
        self._first = [name for first, _ in self._lists["cultures"].values() for name in first]
        self._last = [name for _, last in self._lists["cultures"].values() for name in last]
        kept = [name.split() for author, name in known_authors().items() if author < KEPT_AUTHORS]
        self._known_first = sorted({words[0] for words in kept if len(words) > 1})
        self._known_last = sorted({words[-1] for words in kept if len(words) > 1})
        self._taken = {name.casefold() for name in known_authors().values()}

    def person(self) -> str:
        """A name of two or three words, like a person's, that nobody in any split has."""
        while True:
            name = self._draw_person()
            if not words_of(name) & reserved_words() and name.casefold() not in reserved_text():
                return name

    def title(self) -> str:
        """The title of a work that no split mentions, without quotation marks."""
        rng, lists = self._rng, self._lists
        while True:
            noun, other = rng.sample(lists["nouns"], 2)
            title = str(rng.choice(lists["titles"])).format(
                a=rng.choice(lists["adjectives"]), n=noun, n2=other,
                s=rng.choice(lists["abstract"]), v=rng.choice(lists["verbs"]),
            )
            if title.casefold() not in reserved_text():
                return re.sub(r"^A (?=[AEIOU])", "An ", title)

    def place(self) -> str:
        """A word that could name a place, a company or a battle and occurs in no split."""
        while True:
            name = self._word("place") if self._rng.random() < 0.7 else self._word("person")
            if len(name) >= 5 and name.casefold() not in reserved_text() and not words_of(name) & reserved_words():
                return name

    def city(self) -> str:
        """A real city with its country, half of the time the birthplace of an author whom the model knows."""
        return str(self._rng.choice(self._rng.choice((self._lists["cities"], birthplaces()))))

    def genre(self) -> str:
        """A genre of books."""
        return str(self._rng.choice(self._lists["genres"]))

    def _draw_person(self) -> str:
        rng, draw = self._rng, self._rng.random()
        if draw < 0.36:
            first, last = rng.choice(list(self._lists["cultures"].values()))
            words = [rng.choice(first), rng.choice(last)]
        elif draw < 0.48:
            words = [rng.choice(self._first), rng.choice(self._last)]
        elif draw < 0.62:
            words = [rng.choice(self._first), self._word("person")]
        elif draw < 0.74:
            words = [self._word("person"), self._word("person")]
        elif draw < 0.90:
            words = [rng.choice(self._known_first), rng.choice((rng.choice(self._last), self._word("person")))]
        else:
            words = [rng.choice((rng.choice(self._first), self._word("person"))), rng.choice(self._known_last)]
        if rng.random() < 0.15:
            words.insert(1, rng.choice((rng.choice(self._first), self._word("person"))))
        elif rng.random() < 0.05:
            words[-1] += f"-{self._word('person')}"
        return " ".join(words)

    def _word(self, ending: str) -> str:
        parts, rng = self._lists["syllables"], self._rng
        return str(rng.choice(parts["first"]) + rng.choice(parts["middle"]) + rng.choice(parts[ending]))
