"""The two normal forms of text, with offsets back to the original.

Mask form (constraint and output check): NFKD, diacritics and format characters dropped, casefold, runs of spaces
and punctuation folded to one space. It is a function of single characters (besides the folding of runs), so the form
of a text is the fold of the forms of its pieces, however it is cut into tokens. Strong form (detector aliases):
the same letters with look-alikes and digits written for letters mapped back, and separators dropped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

SEPARATOR = " "
_ASCII_FORMAT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]+")
_ASCII_SEPARATORS = re.compile(r"[^0-9a-z]+")

# UTS 39 look-alikes of Latin letters that NFKC and diacritic stripping leave alone
_CONFUSABLES = str.maketrans(
    "аеорсухіјѕԁһԛԝкмтвнгαορινκτυχηβεζμƒɑɡıłøđħŧßæœþðΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeopcyxijsdhqwkmtbhraopivktuxnbezmfagilodhtsaopdabezhikmnoptyx",
)
# one class for 1, i and l, since "H1na" and "Hlna" both stand for "Hina"
_LEET = str.maketrans("0134578@$i", "oleastbasl")


@dataclass(frozen=True, slots=True)
class NormalText:
    """Normalised `text`; character i came from original character `offsets[i]`."""

    text: str
    offsets: tuple[int, ...]

    def original_span(self, start: int, end: int) -> tuple[int, int]:
        """Half-open range of the original text that the normalised range `start`..`end` came from."""
        return self.offsets[start], self.offsets[end - 1] + 1


def mask_form(text: str) -> str:
    """Mask form of a whole text, without leading and trailing separators."""
    if text.isascii():
        # the same, many times as fast: lists and protected texts are long
        if text.isalnum():
            return text.lower()
        return _ASCII_SEPARATORS.sub(SEPARATOR, _ASCII_FORMAT.sub("", text).lower()).strip(SEPARATOR)
    return mask_form_with_offsets(text).text.strip(SEPARATOR)


def mask_form_with_offsets(text: str) -> NormalText:
    """Mask form; leading and trailing separators are kept, since they are word boundaries."""
    return _in_form(text, fold_character)


@lru_cache(maxsize=65536)
def fold_character(character: str) -> str:
    """Mask form of one character: "" for format characters, one separator for space and punctuation."""
    if unicodedata.category(character) in ("Cf", "Cc", "Mn", "Me") and character not in "\t\n\r\x0b\x0c":
        return ""
    folded = []
    for part in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold()):
        category = unicodedata.category(part)
        if category[0] in "LN":
            folded.append(part)
        elif category[0] in "ZPSC":
            folded.append(SEPARATOR)
    return "".join(folded)


def strong_form(text: str) -> str:
    """Strong form: only letters and digits, look-alikes and leet digits mapped to Latin letters."""
    return "".join(map(_strong_character, text))


def strong_form_with_offsets(text: str) -> NormalText:
    """Strong form with offsets into `text`."""
    return _in_form(text, _strong_character)


def _in_form(text: str, form: Callable[[str], str]) -> NormalText:
    characters: list[str] = []
    offsets: list[int] = []
    for position, original in enumerate(text):
        for character in form(original):
            if character == SEPARATOR and characters and characters[-1] == SEPARATOR:
                continue
            characters.append(character)
            offsets.append(position)
    return NormalText("".join(characters), tuple(offsets))


@lru_cache(maxsize=65536)
def _strong_character(character: str) -> str:
    if unicodedata.category(character) in ("Cf", "Cc", "Mn", "Me"):
        return ""
    decomposed = unicodedata.normalize("NFKD", character).casefold()
    letters = decomposed.translate(_CONFUSABLES).translate(_LEET)
    return "".join(c for c in letters if unicodedata.category(c)[0] in "LN")
