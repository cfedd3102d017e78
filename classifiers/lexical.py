"""Names and aliases of a forget-list, found in a prompt whatever they are dressed up as.

One Aho-Corasick automaton over the strong normal form (`normalize`), in which case, accents, look-alikes, digits for
letters, zero-width characters and separators do not exist. Because separators are gone, every match is checked in
the original text: "Ann" is not in "planning", and "Thera" is not in "the Ra" though it is in "T h e r a". Long
names are also looked for reversed, in ROT13, and inside decodable runs (base64, hexadecimal).
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
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
        self._terms: list[list[_Term]] = []
        self._automaton = ahocorasick.Automaton()
        self._slots: dict[str, int] = {}
        for index, target in enumerate(targets):
            for alias in (target.name, *target.aliases):
                self._add_alias(index, alias)
            for part in name_parts(target.name):
                self._add(strong_form(part), _Term(index, 0, frozenset(), partial=True))
        self._empty = not self._slots
        if not self._empty:
            self._automaton.make_automaton()

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

    def _add_alias(self, index: int, alias: str) -> None:
        words = [strong_form(word) for word in re.split(r"[^\w]+|_", alias)]
        strong = strong_form(alias)
        breaks, position = set(), 0
        for word in words[:-1]:
            position += len(word)
            breaks.add(position)
        self._add(strong, _Term(index, len(strong), frozenset(breaks)))
        if len(strong) >= LONG:
            self._add(strong[::-1], _Term(index, len(strong), frozenset(), disguise=True))
            rotated = strong_form(codecs.encode(alias, "rot13"))
            self._add(rotated, _Term(index, len(rotated), frozenset(), disguise=True))

    def _add(self, strong: str, term: _Term) -> None:
        if len(strong) < MIN_ALIAS:
            return
        slot = self._slots.setdefault(strong, len(self._terms))
        if slot == len(self._terms):
            self._terms.append([])
            self._automaton.add_word(strong, slot)
        self._terms[slot].append(_Term(term.target, len(strong), term.breaks, term.disguise, term.partial))

    def _find(self, text: str, *, partial: bool) -> dict[int, list[Span]]:
        found: dict[int, list[Span]] = {}
        if self._empty or not text:
            return found
        normal = strong_form_with_offsets(text)
        for last, slot in self._automaton.iter(normal.text):
            for term in self._terms[slot]:
                start = last - term.length + 1
                if term.partial == partial and _stands_alone(text, normal, start, last + 1, term):
                    found.setdefault(term.target, []).append(normal.original_span(start, last + 1))
        return found


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
