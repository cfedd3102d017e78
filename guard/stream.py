"""Incremental check of generated text: releases only what can no longer become part of a forbidden string.

The same matching rule as the automaton in the engine: mask form, left edge of a word, no right edge required. Pure,
character by character, so the result does not depend on how the text was cut.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from guard.classifiers.normalize import SEPARATOR, fold_character
from guard.classifiers.trie import INSIDE_WORD, WORD_START, Trie, build_trie
from guard.errors import ConfigurationError

NO_EXEMPTIONS: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class PatternSet:
    """Forbidden strings in mask form, sorted and distinct, and the trie that numbers them in this order.

    Making one takes time that grows with the strings (a quarter of a second for 10^5 when the trie is built too): do it
    once per list version and off the event loop. Raises ConfigurationError when `trie` holds another number of strings.
    """

    patterns: tuple[str, ...]
    trie: Trie

    def __post_init__(self) -> None:
        # both calls also compute tables of the trie that would else be computed while a request waits
        self.trie.depth(WORD_START)
        if self.trie.through(WORD_START) != len(self.patterns):
            raise ConfigurationError(f"the trie was built for other strings than these {len(self.patterns)}")

    @classmethod
    def compile(cls, patterns: Iterable[str]) -> PatternSet:
        """Build the trie of `patterns` (mask form, any order; empty ones are dropped)."""
        ranked = tuple(sorted({pattern for pattern in patterns if pattern}))
        return cls(ranked, build_trie(ranked)[0])


@dataclass(frozen=True, slots=True)
class Released:
    """Text that may be sent, and whether a forbidden string was found (it and what follows stay held)."""

    text: str
    hit: bool


class OutputMatcher:
    """Matcher of one text: one choice of one channel.

    The strings in `exempt` (indices into `patterns.patterns`) may appear. `seed` is text before the first character,
    such as the end of the prompt: a match may begin in it, but one that ends in it does not count, and no part of it is
    released.
    """

    def __init__(self, patterns: PatternSet, exempt: frozenset[int] = NO_EXEMPTIONS, seed: str = "") -> None:
        self._trie = patterns.trie
        self._exempt = exempt
        self._harmless = _harmless_nodes(patterns, exempt)
        self.go_back(_node_after(patterns.trie, seed))

    @property
    def found(self) -> int:
        """Index of the longest forbidden string that was completed; -1 without a hit."""
        return self._trie.pattern_of(self._candidate()) if self.hit else -1

    def fork(self) -> OutputMatcher:
        """An independent matcher that has read the same text; costs no more than the text that is held."""
        other = copy.copy(self)
        other._sources = self._sources.copy()
        return other

    @property
    def held(self) -> str:
        """Text that was fed and not released."""
        return self._held

    @property
    def place(self) -> int:
        """Where in the text this matcher is now, for `go_back`; of no use after a hit."""
        return self._node

    def go_back(self, place: int) -> None:
        """Go on as if the text had ended at `place`: what was read before is seed now, and nothing is held."""
        self._node = place
        self._held = ""
        self._dropped = 0
        # for the last folded characters, at least as many as the node is deep: number of the character they came from
        self._sources = [-1] * self._trie.depth(place)
        self.hit = False

    def feed(self, text: str) -> Released:
        """Read more text. After a hit nothing is released any more."""
        first = self._dropped + len(self._held)
        self._held += text
        if self.hit:
            return Released("", True)
        for position, character in enumerate(text, first):
            for folded in fold_character(character):
                self._read(folded, position)
                if self._trie.completes(self._node, self._exempt):
                    self.hit = True
                    return Released(self._release(), True)
        return Released(self._release(), False)

    def flush(self) -> Released:
        """The text is complete: release what is held, unless there was a hit."""
        if self.hit:
            return Released("", True)
        text, self._held = self._held, ""
        self._dropped += len(text)
        return Released(text, False)

    def _read(self, folded: str, position: int) -> None:
        before, self._node = self._node, self._trie.step(self._node, ord(folded))
        # a separator after a separator belongs to the same character of the mask form
        if self._node != before or folded != SEPARATOR:
            self._sources.append(position)

    def _release(self) -> str:
        """Cut off and return everything before the earliest character that a match could begin with."""
        del self._sources[: len(self._sources) - self._trie.depth(self._node)]
        count = len(self._held)
        letters = self._trie.depth(self._candidate()) - 1
        # the leading separator of a candidate is never part of the string
        if letters > 0:
            count = min(count, max(0, self._sources[-letters] - self._dropped))
        text, self._held = self._held[:count], self._held[count:]
        self._dropped += count
        return text

    def _candidate(self) -> int:
        """Node of the longest string that was completed, or of the longest beginning of one that may not appear."""
        trie = self._trie
        if self.hit:
            return next(end for end in trie.ends(self._node) if trie.pattern_of(end) not in self._exempt)
        if not self._harmless:
            return self._node
        return next((node for node in trie.chain(self._node) if node not in self._harmless), INSIDE_WORD)


def _node_after(trie: Trie, seed: str) -> int:
    """The node that a text leads to. Only its end counts, so the time does not grow with the text."""
    longest = trie.depth(trie.nodes - 1)  # nodes are in breadth-first order
    start, letters = len(seed), 0
    while start and letters < longest:
        start -= 1
        letters += len(fold_character(seed[start]).replace(SEPARATOR, ""))
    node = INSIDE_WORD if start else WORD_START
    for character in seed[start:]:
        for folded in fold_character(character):
            node = trie.step(node, ord(folded))
    return node


def _harmless_nodes(patterns: PatternSet, exempt: frozenset[int]) -> frozenset[int]:
    """Nodes from which only exempt patterns can be completed: nothing needs to be held for them."""
    trie = patterns.trie
    passed: Counter[int] = Counter()
    for index in exempt:
        if index >= len(patterns.patterns):
            continue
        node = WORD_START
        passed[node] += 1
        for character in patterns.patterns[index]:
            node = trie.step(node, ord(character))
            passed[node] += 1
    return frozenset(node for node, count in passed.items() if count == trie.through(node))
