"""The words by which a turn refers back, by language; read from `data/follow_up.yaml`, which says what each list is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import yaml

# written without spaces: words are looked for inside the text
UNSPACED = ("zh", "ja")
# hyphens part words ("est-il"), and so do elisions ("l'auteur", "qu'il"); endings stay ("he's", "Paris's")
_WORD = re.compile(r"\*|qu(?=['’])|[^\W_]+(?=['’][^\W_]{3})|[^\W_]+(?:['’][^\W_]{1,2}(?![^\W_]))?", re.IGNORECASE)
_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class Word:
    """A word in lower case and its half-open range in the text."""

    folded: str
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """The words of a text in order."""
    return [
        Word(match.group().casefold().replace("’", "'"), match.start(), match.end()) for match in _WORD.finditer(text)
    ]


@dataclass(frozen=True, slots=True)
class Words:
    """The lists of one language or of several together; all lower case. Phrases are patterns over spaced words."""

    small: frozenset[str]
    vague: frozenset[str]
    vague_stems: tuple[str, ...]
    person: frozenset[str]
    thing: frozenset[str]
    articles: frozenset[str]
    nouns: frozenset[str]
    openers: frozenset[str]
    closers: frozenset[str]
    pointers: re.Pattern[str]
    phrases: re.Pattern[str]
    idle: re.Pattern[str]
    standing: re.Pattern[str]

    def has_topic(self, word: str) -> bool:
        """Whether a word says on its own what a turn is about."""
        plain = word.removesuffix("'s").replace("'", "")
        return plain not in self.small and plain not in self.vague and not plain.startswith(self.vague_stems)


@lru_cache(maxsize=1)
def languages() -> tuple[str, ...]:
    """Codes of the languages that have lists."""
    return tuple(_data())


@lru_cache(maxsize=256)
def words_of(chosen: frozenset[str]) -> Words:
    """The lists of some languages together."""
    spaced = not any(language in UNSPACED for language in chosen)
    lists = [_data()[language] for language in sorted(chosen)]
    vague = _split(lists, "vague")
    return Words(
        small=_split(lists, "small"),
        vague=frozenset(word for word in vague if not word.endswith("*")),
        vague_stems=tuple(sorted(word[:-1] for word in vague if word.endswith("*"))),
        person=_split(lists, "person"),
        thing=_split(lists, "thing"),
        articles=_articles(lists, chosen),
        nouns=_split(lists, "nouns"),
        openers=_split(lists, "openers"),
        closers=_split(lists, "closers"),
        pointers=_pattern(lists, "pointers", spaced),
        phrases=_pattern(lists, "phrases", spaced),
        idle=_pattern(lists, "idle", spaced),
        standing=_pattern(lists, "standing", spaced),
    )


@lru_cache(maxsize=1)
def _data() -> dict[str, dict[str, str]]:
    text = (files("guard.classifiers") / "data" / "follow_up.yaml").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, str]] = yaml.safe_load(text)
    return loaded


def _split(lists: Iterable[Mapping[str, str]], key: str) -> frozenset[str]:
    return frozenset(word for entry in lists for word in entry.get(key, "").casefold().split())


def _articles(lists: Iterable[Mapping[str, str]], chosen: frozenset[str]) -> frozenset[str]:
    """Definite articles; "a" is Portuguese for "the", but not where the text may be English."""
    return _split(lists, "articles") - ({"a"} if "en" in chosen else set())


def _pattern(lists: Iterable[Mapping[str, str]], key: str, spaced: bool) -> re.Pattern[str]:
    """Any of the phrases: between word boundaries, or anywhere where words are not spaced (and phrases hold none)."""
    cut = "|" if spaced else None
    phrases = {phrase.strip().casefold() for entry in lists for phrase in entry.get(key, "").split(cut)} - {""}
    if spaced:
        phrases = {" ".join(word.folded for word in split_words(phrase)) for phrase in phrases}
    if not phrases:
        return _NOTHING
    longest_first = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    body = "|".join(re.escape(phrase).replace(r"\*", r"\S+") for phrase in longest_first)
    return re.compile(rf"(?<!\S)(?:{body})(?!\S)" if spaced else body)
