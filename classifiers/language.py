"""The language of a question, among a few: by script first, then by py3langid's naive Bayes model.

Names are foreign words in any language ("Who wrote Der Zauberberg?" is English), so capitalised words are left out;
German keeps enough small words to be recognised. Where the rest says too little, the default is taken.
Reference: Lui and Baldwin, langid.py: an off-the-shelf language identification tool, ACL 2012.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from copy import copy
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# what is left of a question without its names must be this probable in one language. Chosen on the first 3,000 rows of
# each of RWKU's question files, all English, together with short questions of ten languages in the tests.
CONFIDENCE = 0.4
# characters that are read: the end of a turn, where the question stands
READ = 1000
# a character of these scripts says as much as a few letters
_WIDE = 3
# words of scripts with capitals: Latin, Greek, Cyrillic
_CASED = r"A-Za-z\u00c0-\u024f\u1e00-\u1eff\u0370-\u052f"
_WORD = re.compile(rf"[{_CASED}][{_CASED}'\u2019.-]*")
_BLANK = re.compile(r"_{2,}")
_LOAD = Lock()


def language_of(text: str, among: Collection[str], default: str = "en") -> str:
    """The language (ISO 639 code) of `text` out of `among`; `default` where the text does not tell.

    The first call for the languages of an alphabet reads a model of 5 MB (half a second): `prepare_languages` does it
    ahead. Safe in threads. Codes that the model does not know are only found by their script (kana: `ja`, Chinese
    characters: `zh`, Cyrillic: `ru`).
    """
    plain = _without_names(text[-READ:])
    script = _script(plain)
    if script in ("ja", "zh"):
        # Chinese characters alone may still be Japanese where Chinese is none of the languages
        return next((one for one in (script, "ja", "zh") if one in among), default)
    if script == "ru" and "ru" in among and "uk" not in among and "bg" not in among:
        return "ru"
    identifier = _identifier(frozenset(among))
    if identifier is None:
        return default
    language, confidence = identifier.classify(plain)
    return str(language) if confidence >= CONFIDENCE else default


def prepare_languages(among: Collection[str]) -> None:
    """Read the model now, so that the first question does not wait for it."""
    _identifier(frozenset(among))


def _without_names(text: str) -> str:
    """`text` without capitalised words, but for its first word, which every language writes so."""
    if text.isupper():
        text = text.lower()
    first = _WORD.search(text)
    begins = first.start() if first is not None else 0

    def kept(match: re.Match[str]) -> str:
        if not match[0][0].isupper():
            return match[0]
        return match[0].lower() if match.start() == begins else ""

    return _BLANK.sub(" ", _WORD.sub(kept, text))


def _script(text: str) -> str:
    """`ja`, `zh` or `ru` where most of a text is written in that script, else ""."""
    count = {"ja": 0, "zh": 0, "ru": 0, "": 0}
    for character in text:
        if character.isalpha():
            script = _script_of(character)
            count[script] += _WIDE if script in ("ja", "zh") else 1
    # Japanese is kana and Chinese characters
    wide = count["ja"] + count["zh"]
    if wide > max(count["ru"], count[""]):
        return "ja" if count["ja"] else "zh"
    return "ru" if count["ru"] > count[""] else ""


@lru_cache(maxsize=4096)
def _script_of(character: str) -> str:
    name = unicodedata.name(character, "")
    if name.startswith(("HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA")):
        return "ja"
    if name.startswith("CJK"):
        return "zh"
    return "ru" if name.startswith("CYRILLIC") else ""


def _identifier(among: frozenset[str]) -> LanguageIdentifier | None:
    """A classifier of these languages; None where there is nothing to choose from."""
    with _LOAD:
        return _restricted(among)


@lru_cache(maxsize=256)
def _restricted(among: frozenset[str]) -> LanguageIdentifier | None:
    whole = _whole()
    languages = among & set(whole.labels)
    if not languages:
        return None
    # the automaton is shared; only the columns of the languages are copied
    restricted = copy(whole)
    restricted.set_languages(languages)
    return restricted


@lru_cache(maxsize=1)
def _whole() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
