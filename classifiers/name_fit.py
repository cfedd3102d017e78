"""Whether a doubtful part of a name names its target: `policy.name_forms` and the sentence decide.

`strict`: always, where it is spelled as a name. `balanced`: where no other given name stands beside it and the
sentence is not unlike what is known of the target; without sentence vectors the spelling decides alone.
Limits are cosines of the sentence to the nearest text of the target (its name, when there is nothing else), chosen
on RWKU subjects 1-50 and WikiText-2's validation text: 97 % of the sentences with a bare surname are above, and
two thirds of the sentences about other people of that surname are below.
"""

from __future__ import annotations

from collections.abc import Sequence

from guard.classifiers.lexical import Doubt
from guard.policy import NameForms

_SURNAME = 0.29
_GIVEN = 0.42
_COMMON_NAME = 0.35
# how much more it takes where the text speaks of another bearer of the name: "Martin Luther King ... King"
_CONTESTED = 0.16
# a shorter sentence is like every name in it
_GIVEN_WORDS = 5


def plausible(doubt: Doubt, text: str, forms: NameForms) -> bool:
    """Whether anything but the meaning of its sentence speaks against a doubtful part."""
    if forms == "strict":
        return True
    if doubt.mention.bearer != "bare":
        return False
    return doubt.form.part != "given" or len(sentence_of(doubt, text).split()) >= _GIVEN_WORDS


def fits(doubt: Doubt, similarity: float | None, forms: NameForms) -> bool:
    """Whether the sentence fits; `similarity` is None where there are no vectors."""
    if forms == "strict":
        return True
    if similarity is None:
        return doubt.form.part == "surname" and not doubt.contested
    return similarity >= limit_of(doubt)


def limit_of(doubt: Doubt) -> float:
    """The cosine from which a sentence fits."""
    limit = {"surname": _SURNAME, "given": _GIVEN, "whole": _COMMON_NAME}[doubt.form.part]
    return limit + _CONTESTED if doubt.contested else limit


def sentence_of(doubt: Doubt, text: str) -> str:
    """The sentence that holds the part."""
    start, end = doubt.mention.sentence
    return text[start:end]


def unsettled(doubts: Sequence[Doubt], text: str, forms: NameForms) -> list[Doubt]:
    """Doubts that the sentence has to settle, each target and sentence once."""
    kept: dict[tuple[int, str], Doubt] = {}
    for doubt in doubts:
        if plausible(doubt, text, forms):
            kept.setdefault((doubt.target, sentence_of(doubt, text)), doubt)
    return list(kept.values())
