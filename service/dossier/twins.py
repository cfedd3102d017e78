"""Made-up names of a kind: what the model says of them, it says without knowing anything.

They share no word with the target, because a rare first name alone makes a model tell what it knows of its bearer. So
the twins of people, works, places and organisations are the same for every name; a fact or a topic keeps its frame
with made-up words. The generator is seeded.
"""

from __future__ import annotations

import random
import re

from guard.classifiers.normalize import mask_form
from guard.classifiers.word_frequency import zipf
from guard.policy import Kind
from guard.service.dossier.mentions import COMMON

_ONSETS = ("b", "br", "d", "dr", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
_CODAS = ("l", "n", "r", "s", "th", "m", "nd", "rn", "ck", "sk")
_FIRST = ("Daniel", "Laura", "Marcus", "Helen", "Victor", "Nadia", "Peter", "Irene", "Samuel", "Clara")
_WORKS = ("The {a} of {b}", "{b} Nights", "The Last {a}", "A {a} in {b}")
_NOUNS = ("Harbour", "Lantern", "Orchard", "Ferryman", "Winter", "Garden")
_PLACES = ("{b}", "Port {b}", "Lake {b}", "{b} Bay")
_ORGANISATIONS = ("{b} Industries", "{b} & {c}", "The {b} Foundation", "{b} Group")
# kinds whose twins keep the words around those that carry the meaning
FRAMED: frozenset[Kind] = frozenset({"fact", "topic"})
_CAPITALISED = re.compile(r"\b[^\W\d_a-z][\w'’-]*")
_LONG_WORD = re.compile(r"\b[^\W\d_]{6,}\b")


def twins(name: str, kind: Kind, count: int, seed: int = 0) -> tuple[str, ...]:
    """`count` different made-up names of the kind of `name`."""
    # a string seeds by its bytes, the same in every process
    source = random.Random(f"{kind}\x1f{name if kind in FRAMED else ''}\x1f{seed}")
    made: list[str] = []
    while len(made) < count:
        twin = _twin(source, name, kind)
        if twin not in made and twin.casefold() != name.casefold():
            made.append(twin)
    return tuple(made)


def made_up_word(source: random.Random) -> str:
    """A capitalised word of two or three syllables that names nothing."""
    syllables = source.choice((2, 2, 3))
    word = "".join(source.choice(_ONSETS) + source.choice(_VOWELS) for _ in range(syllables)) + source.choice(_CODAS)
    return word.capitalize()


def _twin(source: random.Random, name: str, kind: Kind) -> str:
    made = {"a": source.choice(_NOUNS), "b": made_up_word(source), "c": made_up_word(source)}
    if kind == "person":
        return f"{source.choice(_FIRST)} {made['b']}"
    if kind in ("work", "text"):
        return source.choice(_WORKS).format(**made)
    if kind == "place":
        return source.choice(_PLACES).format(**made)
    if kind == "organisation":
        return source.choice(_ORGANISATIONS).format(**made)
    # a fact or topic keeps its frame; the words that carry it are made up
    carrying = _CAPITALISED if kind == "fact" and _CAPITALISED.search(name[1:]) else _LONG_WORD
    replaced = carrying.sub(lambda match: _replaced(source, match[0]), name)
    return replaced if replaced != name else f"{made_up_word(source).lower()} {made_up_word(source).lower()}"


def _replaced(source: random.Random, word: str) -> str:
    if zipf(mask_form(word)) >= COMMON:
        return word
    made = made_up_word(source)
    return made if word[:1].isupper() else made.lower()
