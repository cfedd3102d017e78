"""Aho-Corasick trie over the characters of the mask form, as flat arrays built level by level with numpy.

Every pattern is stored with a leading separator, because a match must begin at the left edge of a word. Node 0 means
"inside a word, nothing matched"; node 1 means "just after a separator, or at the start of the text". A run of
separators counts as one, so a node whose last character is a separator stays put when another separator follows.
Source: Aho and Corasick, Efficient string matching, CACM 18(6), 1975.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from guard.classifiers.normalize import SEPARATOR
from guard.errors import ConfigurationError

Ints = NDArray[np.int32]
SEPARATOR_CODE = ord(SEPARATOR)
INSIDE_WORD = 0
WORD_START = 1
MAX_CHARACTERS = 64_000_000
TRIE_ARRAYS = ("first_child", "label", "fail", "output", "pattern")


def code_points(text: str) -> Ints:
    """Code points of `text`, int32 [len(text)]."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.int32).copy()


class Trie:
    """The patterns (sorted, distinct, in mask form) as arrays of S nodes in breadth-first order, all int32.

    `first_child` [S + 1]: children of node n are first_child[n] .. first_child[n + 1], sorted by `label` [S], the
    last character of a node. `fail` [S]: longest proper suffix that is a node. `output` [S]: nearest node on the
    failure chain, itself included, at which a pattern ends, or -1. `pattern` [S]: index of the pattern or -1.
    """

    def __init__(self, arrays: dict[str, Ints]) -> None:
        self.arrays = {name: arrays[name] for name in TRIE_ARRAYS}
        self._first, self._label, self._fail, self._output, self._pattern = (
            np.ascontiguousarray(arrays[name]).data for name in TRIE_ARRAYS
        )

    @property
    def nodes(self) -> int:
        """Number of nodes S."""
        return len(self._label)

    def step(self, node: int, code: int) -> int:
        """The node after `node` reads one character of the mask form, given by its code point."""
        first, label = self._first, self._label
        if code == SEPARATOR_CODE and label[node] == SEPARATOR_CODE:
            return node
        while True:
            low, high = first[node], first[node + 1]
            child = low if high - low == 1 else bisect_left(label, code, low, high)
            if child < high and label[child] == code:
                return child
            if node == INSIDE_WORD:
                return INSIDE_WORD
            node = self._fail[node]

    def depth(self, node: int) -> int:
        """Number of characters of `node`, its leading separator included."""
        return self._depths[node]

    def through(self, node: int) -> int:
        """Number of patterns that begin with `node`."""
        return self._passing[node]

    def ends(self, node: int) -> Iterator[int]:
        """Nodes on the failure chain of `node`, itself included, at which a pattern ends; longest first."""
        node = self._output[node]
        while node >= 0:
            yield node
            node = self._output[self._fail[node]]

    def pattern_of(self, node: int) -> int:
        """Index of the pattern that ends at `node`, or -1."""
        return self._pattern[node]

    def completed(self, node: int) -> Iterator[int]:
        """Indices of the patterns that end at `node`, longest first."""
        return (self._pattern[end] for end in self.ends(node))

    def completes(self, node: int, exempt: frozenset[int]) -> bool:
        """Whether a pattern that is not in `exempt` ends at `node`."""
        return self._output[node] >= 0 and any(pattern not in exempt for pattern in self.completed(node))

    def chain(self, node: int) -> Iterator[int]:
        """`node` and its suffixes, longest first, without the root."""
        while node != INSIDE_WORD:
            yield node
            node = self._fail[node]

    @cached_property
    def _parents(self) -> NDArray[np.int64]:
        counts = np.diff(self.arrays["first_child"].astype(np.int64))
        return np.concatenate([np.zeros(1, dtype=np.int64), np.repeat(np.arange(self.nodes), counts)])

    @cached_property
    def _depths(self) -> memoryview:
        depths = np.zeros(self.nodes, dtype=np.int32)
        first = self.arrays["first_child"]
        low, high, depth = 1, 2, 1
        while low < high:
            depths[low:high] = depth
            low, high, depth = int(first[low]), int(first[high]), depth + 1
        return depths.data

    @cached_property
    def _passing(self) -> memoryview:
        passing = (self.arrays["pattern"] >= 0).astype(np.int32)
        first = self.arrays["first_child"]
        levels = []
        low, high = 1, 2
        while low < high:
            levels.append((low, high))
            low, high = int(first[low]), int(first[high])
        for low, high in reversed(levels):
            np.add.at(passing, self._parents[low:high], passing[low:high])
        return passing.data

    @cached_property
    def lookup(self) -> Lookup:
        """Vectorised transitions."""
        return Lookup(self.arrays["first_child"], self.arrays["label"], self.arrays["fail"])


class Lookup:
    """Transitions of many nodes at once."""

    def __init__(self, first_child: Ints, label: Ints, fail: Ints) -> None:
        counts = np.diff(first_child.astype(np.int64))
        parents = np.repeat(np.arange(len(label), dtype=np.int64), counts)
        self._keys = (parents << 21) | label[1:].astype(np.int64)
        self._fail = fail

    def step(self, nodes: Ints, codes: Ints) -> Ints:
        """Next nodes [N] after `nodes` [N] read `codes` [N]; runs of separators must be folded already."""
        result = np.where(codes == SEPARATOR_CODE, WORD_START, INSIDE_WORD).astype(np.int32)
        left = np.flatnonzero(nodes)
        current = nodes[left]
        while len(left):
            keys = (current.astype(np.int64) << 21) | codes[left]
            places = np.searchsorted(self._keys, keys)
            found = self._keys[np.minimum(places, len(self._keys) - 1)] == keys
            result[left[found]] = places[found] + 1
            left, current = left[~found], self._fail[current[~found]]
            alive = current != INSIDE_WORD
            left, current = left[alive], current[alive]
        return result


class Spelling:
    """The sorted patterns with their leading separators, flat: `codes`, `starts`, `lengths` [N], `nodes` per code."""

    def __init__(self, patterns: Sequence[str]) -> None:
        spelled = [SEPARATOR + pattern for pattern in patterns]
        self.lengths = np.fromiter(map(len, spelled), dtype=np.int64, count=len(spelled))
        if int(self.lengths.sum()) > MAX_CHARACTERS:
            raise ConfigurationError(f"forbidden strings have more than {MAX_CHARACTERS} characters in all")
        self.codes = code_points("".join(spelled))
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.nodes = np.zeros(len(self.codes), dtype=np.int32)


def build_trie(patterns: Sequence[str]) -> tuple[Trie, Spelling]:
    """Build the trie of `patterns` (sorted, distinct, mask form, not empty) and tell which node each character is."""
    spelling = Spelling(patterns)
    labels, parents, bounds = _levels(spelling)
    first_child = np.zeros(len(labels) + 1, dtype=np.int32)
    np.cumsum(np.bincount(parents[1:], minlength=len(labels)), out=first_child[1:])
    first_child += 1
    pattern = np.full(len(labels), -1, dtype=np.int32)
    pattern[spelling.nodes[spelling.starts + spelling.lengths - 1]] = np.arange(len(patterns), dtype=np.int32)
    fail = np.zeros(len(labels), dtype=np.int32)
    output = np.full(len(labels), -1, dtype=np.int32)
    lookup = Lookup(first_child, labels, fail)
    for low, high in bounds[1:]:
        fail[low:high] = lookup.step(fail[parents[low:high]], labels[low:high])
        ends = np.arange(low, high, dtype=np.int32)
        output[low:high] = np.where(pattern[low:high] >= 0, ends, output[fail[low:high]])
    arrays = dict(zip(TRIE_ARRAYS, (first_child, labels, fail, output, pattern), strict=True))
    return Trie(arrays), spelling


def _levels(spelling: Spelling) -> tuple[Ints, Ints, list[tuple[int, int]]]:
    """Labels and parents of all nodes, and the range of nodes of every depth from 1 on; fills `spelling.nodes`."""
    labels = [np.zeros(1, dtype=np.int32)]
    parents = [np.full(1, 0, dtype=np.int32)]
    bounds: list[tuple[int, int]] = []
    if not len(spelling.lengths):
        labels.append(np.array([SEPARATOR_CODE], dtype=np.int32))
        parents.append(np.zeros(1, dtype=np.int32))
        bounds.append((1, 2))
    total = 1
    above = np.zeros(len(spelling.lengths), dtype=np.int32)
    active = np.arange(len(spelling.lengths))
    for depth in range(int(spelling.lengths.max(initial=0))):
        active = active[spelling.lengths[active] > depth]
        codes, parent = spelling.codes[spelling.starts[active] + depth], above[active]
        new = np.ones(len(active), dtype=bool)
        new[1:] = (parent[1:] != parent[:-1]) | (codes[1:] != codes[:-1])
        nodes = (total + np.cumsum(new) - 1).astype(np.int32)
        spelling.nodes[spelling.starts[active] + depth] = nodes
        above[active] = nodes
        labels.append(codes[new])
        parents.append(parent[new])
        bounds.append((total, int(nodes[-1]) + 1))
        total = bounds[-1][1]
    return np.concatenate(labels), np.concatenate(parents), bounds
