"""Names and aliases of a forget-list, found in a prompt whatever they are dressed up as.

Aho-Corasick automata over the strong normal form (`normalize`), in which case, accents, look-alikes, digits for
letters, zero-width characters and separators do not exist. Names are searched for in all their forms (`name_forms`); a
part of a name counts where it is rare or stands beside the right given name (`name_mentions`). Because separators are
gone, every match is checked in the original text: "Ann" is not in "planning", and "Thera" is not in "the Ra" though it
is in "T h e r a". Long names are also looked for reversed, in ROT13, and inside decodable runs (base64, hexadecimal).
"""

from __future__ import annotations

import base64
import binascii
import re
import time
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import ahocorasick

from guard.classifiers.name_forms import NameForm
from guard.classifiers.name_mentions import Mention, surroundings
from guard.classifiers.name_terms import LONG, MIN_ALIAS, Term, terms_of
from guard.classifiers.normalize import NormalText, strong_form_with_offsets
from guard.policy import Target
from guard.verdict import Span

# strong-form letters from which a name needs no word boundary
VERY_LONG = 14
# targets that share a part of a name from which it says nothing about any of them
_MOST_BEARERS = 16
# parts of names that are read at the beginning and at the end of a text
_MOST_READ = 128
MAX_RUNS = 64
# names of one automaton
_TARGETS_AT_ONCE = 4096
# names read between two pauses of a large list
_TARGETS_BEFORE_PAUSE = 256
_PAUSE_S = 0.0005
_RUN = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}")
_INVISIBLE = ("Cf", "Mn", "Me")


@dataclass(frozen=True, slots=True)
class Doubt:
    """A part of a target's name that names the target only if its sentence fits.

    `mention` says whose name it seems to be; `contested` that the text holds another bearer of it.
    """

    target: int
    form: NameForm
    mention: Mention
    contested: bool = False


@dataclass(frozen=True, slots=True)
class Named:
    """What a text names: targets that are named with their character spans, sorted and merged, and doubtful parts."""

    hits: dict[int, tuple[Span, ...]]
    doubts: tuple[Doubt, ...] = ()


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
        return self.read(text).hits

    def read(self, text: str) -> Named:
        """Targets named in `text`, by a name, a form of it or a part that is theirs, and the parts in doubt."""
        found, doubts = self._find(text)
        for run, decoded in decoded_runs(text):
            for index in self._find(decoded)[0]:
                found.setdefault(index, []).append(run)
        others = {(doubt.target, doubt.form) for doubt in doubts if doubt.mention.bearer == "other"}
        kept = tuple(
            replace(doubt, contested=(doubt.target, doubt.form) in others)
            for doubt in doubts if doubt.target not in found
        )
        return Named({index: merge_spans(spans) for index, spans in found.items()}, kept)

    def parts(self, text: str, targets: Iterable[int]) -> dict[int, tuple[Span, ...]]:
        """Single words of the names of `targets` in `text`: not evidence, but places to corrupt once flagged."""
        wanted = set(targets)
        found: dict[int, list[Span]] = {}
        if wanted:
            for term, span in self._terms(text, ("part", "place")):
                if term.target in wanted:
                    found.setdefault(term.target, []).append(span)
        return {index: merge_spans(spans) for index, spans in found.items()}

    def _find(self, text: str) -> tuple[dict[int, list[Span]], list[Doubt]]:
        found: dict[int, list[Span]] = {}
        parts: dict[Span, list[Term]] = {}
        for term, span in self._terms(text, ("name", "disguise", "derived", "part")):
            if term.role == "part":
                parts.setdefault(span, []).append(term)
            else:
                found.setdefault(term.target, []).append(span)
        doubts: list[Doubt] = []
        spans = sorted(parts)
        # who repeats names without end must not keep others waiting; what is asked stands at the end or the beginning
        read = spans if len(spans) <= 2 * _MOST_READ else spans[:_MOST_READ] + spans[-_MOST_READ:]
        for span in read:
            for term, mention in _read_part(text, span, parts[span]):
                if term.form is None or mention is None:
                    found.setdefault(term.target, []).append(span)
                else:
                    doubts.append(Doubt(term.target, term.form, mention))
        return found, doubts

    def _terms(self, text: str, roles: Collection[str]) -> Iterator[tuple[Term, Span]]:
        if not text:
            return
        normal = strong_form_with_offsets(text)
        for part in self._parts:
            for term, last in part.iter(normal.text):
                start = last - term.length + 1
                if term.role in roles and _stands_alone(text, normal, start, last + 1, term):
                    yield term, normal.original_span(start, last + 1)


class _Names:
    """The automaton of some targets' names."""

    def __init__(self, targets: Sequence[Target], numbers: range) -> None:
        terms: dict[str, list[Term]] = {}
        for number in numbers:
            if number % _TARGETS_BEFORE_PAUSE == _TARGETS_BEFORE_PAUSE - 1:
                # where this runs beside an event loop, the loop gets the interpreter
                time.sleep(_PAUSE_S)
            for strong, term in terms_of(number, targets[number]):
                if len(strong) >= MIN_ALIAS:
                    terms.setdefault(strong, []).append(term)
        self._terms = tuple(map(tuple, terms.values()))
        self._automaton = ahocorasick.Automaton()
        for slot, strong in enumerate(terms):
            self._automaton.add_word(strong, slot)
        if terms:
            self._automaton.make_automaton()

    def iter(self, strong: str) -> Iterator[tuple[Term, int]]:
        """Terms in a text of strong form, each with the position of its last character."""
        if self._terms:
            for last, slot in self._automaton.iter(strong):
                for term in self._terms[slot]:
                    yield term, last


def _read_part(text: str, span: Span, terms: Sequence[Term]) -> Iterator[tuple[Term, Mention | None]]:
    """Whose part of a name it is: with None the term's target is named, with a mention it may be."""
    around = surroundings(text, span)
    shared = len(terms) > _MOST_BEARERS
    for term in terms:
        form = term.form
        if form is None:
            continue
        if form.part == "surname":
            mention = around.surname(term.given)
        else:
            mention = around.given_name() if form.part == "given" else around.whole_name()
        rare = form.certainty == "distinctive"
        if mention.bearer == "own" or (rare and mention.bearer in ("bare", "common")):
            yield term, None
        elif mention.bearer != "common" and not shared:
            yield term, mention


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


def _stands_alone(text: str, normal: NormalText, start: int, end: int, term: Term) -> bool:
    first, last = normal.original_span(start, end)
    left, right = _boundary(text, first, -1), _boundary(text, last - 1, 1)
    if term.role == "disguise":
        return left and right
    if term.role == "name" and term.length >= LONG:
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


def _broken_like_name(normal: NormalText, start: int, end: int, term: Term, text: str) -> bool:
    """A short name may be broken only where it has word breaks itself, or between all of its letters."""
    breaks = {
        index - start
        for index in range(start + 1, end)
        if any(not _joins(character) for character in text[normal.offsets[index - 1] + 1 : normal.offsets[index]])
    }
    return breaks <= term.breaks or len(breaks) == term.length - 1


def _joins(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE
