"""Incremental check of generated text: releases only what can no longer become part of a forbidden string.

The same matching rule as the automaton in the engine: mask form, left edge of a word, no right edge required. Pure,
character by character, so the result does not depend on how the text was cut.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from guard.classifiers.normalize import fold_character
from guard.classifiers.trie import WORD_START, Trie, build_trie

MATCHERS_KEPT = 64


@dataclass(frozen=True, slots=True)
class Released:
    """Text that may be sent, and whether a forbidden string was found (it and what follows stay held)."""

    text: str
    hit: bool


class OutputMatcher:
    """Matcher of one text: one choice of one channel.

    `patterns` are in mask form; those in `exempt` (indices into `patterns`) may appear. `seed` is text before the
    first character, such as the end of the prompt: a match may begin in it, and it is never released.
    """

    def __init__(self, patterns: tuple[str, ...], exempt: frozenset[int] = frozenset(), seed: str = "") -> None:
        self._trie, order = _compiled(patterns)
        self._exempt = frozenset(order[patterns[index]] for index in exempt if index < len(patterns))
        self._harmless = _harmless_nodes(self._trie, self._exempt, patterns, exempt)
        self._node = WORD_START
        self._held: list[str] = []
        # for every folded character of the current candidate: number of the original character it came from
        self._sources: list[int] = [-1]
        self._dropped = 0
        self.hit = False
        for character in seed:
            self._read(character, -1)
        self._sources = [-1] * len(self._sources)
        self.hit = False

    @property
    def held(self) -> str:
        """Text that was fed and not released."""
        return "".join(self._held)

    def feed(self, text: str) -> Released:
        """Read more text. After a hit nothing is released any more."""
        for index, character in enumerate(text):
            if self.hit:
                self._held.append(text[index:])
                return Released("", True) if index == 0 else Released(self._release(), True)
            self._held.append(character)
            self._read(character, self._dropped + len(self._held) - 1)
        return Released(self._release(), self.hit)

    def flush(self) -> Released:
        """The text is complete: release what is held, unless there was a hit."""
        if self.hit:
            return Released("", True)
        text = self.held
        self._dropped += len(self._held)
        self._held.clear()
        return Released(text, False)

    def _read(self, character: str, source: int) -> None:
        for folded in fold_character(character):
            before, self._node = self._node, self._trie.step(self._node, ord(folded))
            if self._node != before or folded != " ":
                self._sources.append(source)
            reach = self._trie.depth(self._node)
            del self._sources[: max(0, len(self._sources) - reach)]
            if self._trie.completes(self._node, self._exempt):
                self.hit = True
                self._keep_match()
                return

    def _keep_match(self) -> None:
        """Make the candidate the longest forbidden string that has just been completed."""
        node = next(
            end for end in self._trie.ends(self._node) if self._trie.pattern_of(end) not in self._exempt
        )
        del self._sources[: max(0, len(self._sources) - self._trie.depth(node))]

    def _release(self) -> str:
        """Cut off and return everything before the earliest character that a match could begin with."""
        count = len(self._held)
        if self.hit:
            letters = self._sources[1:]
        else:
            node = next((n for n in self._trie.chain(self._node) if n not in self._harmless), 0)
            # the leading separator of a candidate is never part of the string
            letters = self._sources[len(self._sources) - self._trie.depth(node) + 1 :] if node else []
        if letters:
            count = min(count, max(0, letters[0] - self._dropped))
        text = "".join(self._held[:count])
        del self._held[:count]
        self._dropped += count
        return text


@lru_cache(maxsize=MATCHERS_KEPT)
def _compiled(patterns: tuple[str, ...]) -> tuple[Trie, dict[str, int]]:
    ranked = sorted({pattern for pattern in patterns if pattern})
    return build_trie(ranked)[0], {pattern: index for index, pattern in enumerate(ranked)}


def _harmless_nodes(
    trie: Trie, exempt: frozenset[int], patterns: tuple[str, ...], indices: frozenset[int]
) -> frozenset[int]:
    """Nodes from which only exempt patterns can be completed: nothing needs to be held for them."""
    passed: Counter[int] = Counter()
    for pattern in {patterns[index] for index in indices if index < len(patterns)}:
        node = WORD_START
        passed[node] += 1
        for character in pattern:
            node = trie.step(node, ord(character))
            passed[node] += 1
    return frozenset(node for node, count in passed.items() if count == trie.through(node))
