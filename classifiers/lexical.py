"""Names and aliases of a forget-list, found in a prompt whatever they are dressed up as.

Aho-Corasick automata over the strong normal form (`normalize`), in which case, accents, look-alikes, digits for
letters, zero-width characters and separators do not exist. Because separators are gone, every match is checked in
the original text: "Ann" is not in "planning", and "Thera" is not in "the Ra" though it is in "T h e r a". Long
names are also looked for reversed, in ROT13, and inside decodable runs (base64, hexadecimal).
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import ahocorasick

from guard.classifiers.normalize import NormalText, strong_form, strong_form_with_offsets
from guard.policy import Target
from guard.verdict import Span

# strong-form letters from which a name needs one word boundary only, and from which its disguises are searched too
LONG = 8
# and from which none is needed
VERY_LONG = 14
MIN_ALIAS = 2
MIN_PART = 4
MAX_RUNS = 64
# names of one automaton
_TARGETS_AT_ONCE = 4096
# names read between two pauses of a large list
_TARGETS_BEFORE_PAUSE = 256
_PAUSE_S = 0.0005
_NO_BREAKS: frozenset[int] = frozenset()
_RUN = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}")
_INVISIBLE = ("Cf", "Mn", "Me")


@dataclass(frozen=True, slots=True)
class _Term:
    """One searched string: its strong form's inner word breaks, and whether it only counts beside other evidence."""

    target: int
    length: int
    breaks: frozenset[int]
    disguise: bool = False
    partial: bool = False


class LexicalMatcher:
    """Finds targets by name. Immutable and thread-safe once built."""

    def __init__(self, targets: Sequence[Target]) -> None:
        # finishing one automaton cannot be interrupted, and that of 10^5 names would hold up the whole process
        self._parts = tuple(
            _Names(targets, range(start, min(start + _TARGETS_AT_ONCE, len(targets))))
            for start in range(0, len(targets), _TARGETS_AT_ONCE)
        )

    def match(self, text: str) -> dict[int, tuple[Span, ...]]:
        """Targets named in `text` with the character spans that name them, sorted and merged."""
        found = self._find(text, partial=False)
        for run, decoded in decoded_runs(text):
            for index in self._find(decoded, partial=False):
                found.setdefault(index, []).append(run)
        return {index: merge_spans(spans) for index, spans in found.items()}

    def parts(self, text: str, targets: Iterable[int]) -> dict[int, tuple[Span, ...]]:
        """Single words of the names of `targets` in `text`: not evidence, but places to corrupt once flagged."""
        wanted = set(targets)
        found = self._find(text, partial=True) if wanted else {}
        return {index: merge_spans(spans) for index, spans in found.items() if index in wanted}

    def _find(self, text: str, *, partial: bool) -> dict[int, list[Span]]:
        found: dict[int, list[Span]] = {}
        if not text:
            return found
        normal = strong_form_with_offsets(text)
        for part in self._parts:
            for term, last in part.iter(normal.text):
                start = last - term.length + 1
                if term.partial == partial and _stands_alone(text, normal, start, last + 1, term):
                    found.setdefault(term.target, []).append(normal.original_span(start, last + 1))
        return found


class _Names:
    """The automaton of some targets' names."""

    def __init__(self, targets: Sequence[Target], numbers: range) -> None:
        terms: dict[str, list[_Term]] = {}
        for number in numbers:
            if number % _TARGETS_BEFORE_PAUSE == _TARGETS_BEFORE_PAUSE - 1:
                # where this runs beside an event loop, the loop gets the interpreter
                time.sleep(_PAUSE_S)
            target = targets[number]
            for alias in (target.name, *target.aliases):
                for strong, term in _alias_terms(number, alias):
                    _add(terms, strong, term)
            for part in map(strong_form, name_parts(target.name)):
                _add(terms, part, _Term(number, len(part), _NO_BREAKS, partial=True))
        self._terms = tuple(map(tuple, terms.values()))
        self._automaton = ahocorasick.Automaton()
        for slot, strong in enumerate(terms):
            self._automaton.add_word(strong, slot)
        if terms:
            self._automaton.make_automaton()

    def iter(self, strong: str) -> Iterator[tuple[_Term, int]]:
        """Terms in a text of strong form, each with the position of its last character."""
        if self._terms:
            for last, slot in self._automaton.iter(strong):
                for term in self._terms[slot]:
                    yield term, last


def _alias_terms(number: int, alias: str) -> Iterator[tuple[str, _Term]]:
    words = [strong_form(word) for word in re.split(r"[^\w]+|_", alias)]
    strong = strong_form(alias)
    breaks, position = set(), 0
    for word in words[:-1]:
        position += len(word)
        breaks.add(position)
    yield strong, _Term(number, len(strong), frozenset(breaks))
    if len(strong) >= LONG:
        yield strong[::-1], _Term(number, len(strong), _NO_BREAKS, disguise=True)
        rotated = strong_form(codecs.encode(alias, "rot13"))
        yield rotated, _Term(number, len(rotated), _NO_BREAKS, disguise=True)


def _add(terms: dict[str, list[_Term]], strong: str, term: _Term) -> None:
    if len(strong) >= MIN_ALIAS:
        terms.setdefault(strong, []).append(term)


def name_parts(name: str) -> tuple[str, ...]:
    """Single words of a name of several words, too short ones left out."""
    words = [word for word in re.split(r"\s+", name.strip()) if word]
    if len(words) < 2:
        return ()
    return tuple(word for word in words if len(strong_form(word)) >= MIN_PART)


def merge_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sort half-open spans and join those that overlap."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def decoded_runs(text: str) -> Iterator[tuple[Span, str]]:
    """Runs of `text` that decode from hexadecimal or base64 to readable text, at most MAX_RUNS of them."""
    for count, match in enumerate(_RUN.finditer(text)):
        if count >= MAX_RUNS:
            return
        for decoded in _decodings(match.group()):
            yield match.span(), decoded


def _decodings(run: str) -> Iterator[str]:
    body = run.rstrip("=")
    candidates: list[bytes] = []
    if len(body) % 2 == 0 and re.fullmatch(r"[0-9A-Fa-f]+", body):
        candidates.append(bytes.fromhex(body))
    if len(body) % 4 != 1:
        try:
            alphabet = b"-_" if "-" in body or "_" in body else None
            candidates.append(base64.b64decode(body + "=" * (-len(body) % 4), altchars=alphabet))
        except (binascii.Error, ValueError):
            return
    for raw in candidates:
        try:
            decoded = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if decoded.isprintable():
            yield decoded


def _stands_alone(text: str, normal: NormalText, start: int, end: int, term: _Term) -> bool:
    first, last = normal.original_span(start, end)
    left, right = _boundary(text, first, -1), _boundary(text, last - 1, 1)
    if term.disguise:
        return left and right
    if term.length >= LONG:
        return left or right or term.length >= VERY_LONG
    return left and right and _broken_like_name(normal, start, end, term, text)


def _boundary(text: str, position: int, step: int) -> bool:
    """Whether a word ends at `position` going in direction `step`; scripts without case have no word boundaries."""
    neighbour = position + step
    while 0 <= neighbour < len(text) and unicodedata.category(text[neighbour]) in _INVISIBLE:
        neighbour += step
    if not 0 <= neighbour < len(text):
        return True
    category = unicodedata.category(text[neighbour])
    return category[0] not in "LN" or category == "Lo"


def _broken_like_name(normal: NormalText, start: int, end: int, term: _Term, text: str) -> bool:
    """A short name may be broken only where it has word breaks itself, or between all of its letters."""
    breaks = {
        index - start
        for index in range(start + 1, end)
        if any(not _joins(character) for character in text[normal.offsets[index - 1] + 1 : normal.offsets[index]])
    }
    return breaks <= term.breaks or len(breaks) == term.length - 1


def _joins(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE
