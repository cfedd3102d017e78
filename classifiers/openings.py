"""The shipped wordings of not knowing, by language.

An *opening* is the beginning of a sentence that goes on with its subject: an answer of ignorance begins with one, and
the model completes it. In Japanese, where the negation stands at the end, openings are clauses that are complete
already. A *bridge* ends a sentence in its middle, where text has been sent that cannot be taken back.
The texts are the project's own; the English ones are measured by `bench/openings.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import yaml

from guard.classifiers.normalize import SEPARATOR, mask_form

DATA = Path(__file__).parent / "data" / "openings.yaml"
# what is used for a language that nothing is shipped for
FALLBACK = "en"


def shipped_languages() -> tuple[str, ...]:
    """ISO 639 codes of the languages that wordings are shipped for, in file order."""
    return tuple(_wordings())


def shipped_openings(language: str) -> tuple[str, ...]:
    """Wordings with which an answer of ignorance may begin; empty for a language that is not shipped."""
    return _wordings().get(language, {}).get("openings", ())


def bridges(language: str) -> tuple[str, ...]:
    """Texts that end a half-said sentence as not knowing, each up to its full stop; English where none are shipped."""
    wordings = _wordings()
    return wordings.get(language, wordings[FALLBACK])["bridges"]


def rest_of(language: str) -> str:
    """What completes an opening of this language after which nothing was said; empty where it is a clause already."""
    wordings = _wordings()
    return "".join(wordings.get(language, wordings[FALLBACK]).get("rest", ())[:1])


def avoided_words(language: str) -> tuple[str, ...]:
    """Words with which an answer of this language would turn from its subject to the speaker."""
    return _wordings().get(language, {}).get("avoid", ())


def refusal_text(language: str) -> str:
    """A short sentence that declines to help; English where none is shipped."""
    wordings = _wordings()
    return wordings.get(language, wordings[FALLBACK])["refusal"][0]


def contradictions(openings: Sequence[str], forbidden: Sequence[str]) -> tuple[str, ...]:
    """The openings that contain a forbidden string, in order: an answer cannot begin with them.

    `forbidden` are strings in mask form. As in the constraint, a match begins at the left edge of a word and may end
    inside one. Costs the length of the openings, whatever the number of strings.
    """
    strings = frozenset(forbidden)
    lengths = sorted(set(map(len, strings)))
    return tuple(opening for opening in openings if _contains(mask_form(opening), strings, lengths))


def _contains(form: str, strings: frozenset[str], lengths: Sequence[int]) -> bool:
    starts = [i for i in range(len(form)) if i == 0 or form[i - 1] == SEPARATOR]
    return any(form[start : start + length] in strings for start in starts for length in lengths)


@lru_cache(maxsize=1)
def _wordings() -> dict[str, dict[str, tuple[str, ...]]]:
    read = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return {language: {kind: tuple(texts) for kind, texts in kinds.items()} for language, kinds in read.items()}
