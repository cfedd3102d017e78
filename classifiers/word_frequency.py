"""How common a word is in ordinary text, in any of a few languages.

The frequencies are those of the library wordfreq (its small lists: words that make up at least one millionth of the
text, Zipf value 3), read at the first question and kept for the process. Words are compared in mask form, so accents
and case do not matter. A Zipf value is log10 of the occurrences in 10^9 words: 6 is "will", 5 "king", 4 "plato".
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from guard.classifiers.normalize import mask_form

LANGUAGES = ("en", "es", "fr", "de", "it", "pt", "nl")
# what an unlisted word is taken for: the lists end a little above
UNLISTED = 2.9
_TO_ZIPF = 9.0


def zipf(word: str) -> float:
    """Zipf value of one word in mask form, the largest of all languages; UNLISTED for a rarer one."""
    position = _words().find(word)
    return UNLISTED if position is None else float(_words().zipf[position])


@lru_cache(maxsize=65536)
def zipf_of_beginning(form: str) -> float:
    """Zipf value of all words together that begin with `form` (mask form): what a mask without a right edge meets."""
    words = _words()
    first = bisect.bisect_left(words.forms, form)
    last = bisect.bisect_left(words.forms, form + "\U0010ffff")
    share = float(words.cumulated[last] - words.cumulated[first])
    return max(UNLISTED, math.log10(share) + _TO_ZIPF) if share > 0.0 else UNLISTED


def loaded() -> bool:
    """Whether the frequencies are in memory, so that a question is answered at once."""
    return bool(_words.cache_info().currsize)


@dataclass(frozen=True, slots=True)
class _Words:
    """Sorted `forms` [n], their `zipf` [n] float32, and `cumulated` [n + 1] float64 sums of their shares of text."""

    forms: list[str]
    zipf: np.ndarray[tuple[int], np.dtype[np.float32]]
    cumulated: np.ndarray[tuple[int], np.dtype[np.float64]]

    def find(self, form: str) -> int | None:
        position = bisect.bisect_left(self.forms, form)
        return position if position < len(self.forms) and self.forms[position] == form else None


@cache
def _words() -> _Words:
    # imported late: only processes with lists need it
    import wordfreq

    largest: dict[str, float] = {}
    for language in LANGUAGES:
        own: dict[str, float] = {}
        for word, share in wordfreq.get_frequency_dict(language, "small").items():
            form = word if word.isascii() and word.isalpha() else mask_form(word)
            own[form] = own.get(form, 0.0) + share
        for form, share in own.items():
            largest[form] = max(share, largest.get(form, 0.0))
    forms = sorted(largest)
    shares = np.array([largest[form] for form in forms])
    cumulated = np.concatenate([[0.0], np.cumsum(shares)])
    return _Words(forms, (np.log10(shares) + _TO_ZIPF).astype(np.float32), cumulated)
