"""The wordings with which an answer must begin, compiled for a vocabulary: which tokens may come next.

Wordings are matched as text (bytes of UTF-8), so every spelling in tokens is open to the model, which takes its own way
through them. From node n the tokens are `token[offset[n]:offset[n + 1]]`; each leads to node `following[...]`, or to
FREE where it ends a wording: from there on the answer is the model's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from guard.classifiers.trie import Ints
from guard.errors import ConfigurationError

FREE = -1
ROOT = 0
# tokens that may follow one node; device code holds them at once
MAX_CHOICES = 1024


class TokenPieces:
    """Which token ids stand for a string of bytes. `pieces[id]` is None for ids that are no text."""

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        self._ids: dict[bytes, list[int]] = {}
        for index, piece in enumerate(pieces):
            if piece:
                self._ids.setdefault(piece, []).append(index)
        self.longest = max(map(len, self._ids), default=0)

    def of(self, text: bytes) -> Sequence[int]:
        """Ids of the tokens that stand for exactly this text."""
        return self._ids.get(text, ())


@dataclass(frozen=True, slots=True)
class OpeningTable:
    """Compiled wordings of N nodes: `offset` int32 [N + 1] over `token` and `following` int32 [E], sorted by token."""

    offset: Ints
    token: Ints
    following: Ints

    @classmethod
    def compile(cls, wordings: Iterable[str], pieces: TokenPieces, *, spaced: bool = False) -> OpeningTable:
        """With `spaced` a wording may also follow a space, as the first token of a SentencePiece text does.

        Raises ConfigurationError when no wording can be written in this vocabulary.
        """
        texts = [lead + wording for wording in wordings if wording for lead in (("", " ") if spaced else ("",))]
        tree = _tree(text.encode() for text in texts)
        choices = _without_dead_ends([_choices(tree, node, pieces) for node in range(len(tree))])
        if not choices[ROOT]:
            raise ConfigurationError("no opening of an answer can be written with the model's vocabulary")
        if max(map(len, choices)) > MAX_CHOICES:
            raise ConfigurationError(f"openings go on in more than {MAX_CHOICES} ways; use fewer wordings")
        flat = [entry for node in choices for entry in sorted(node)]
        offset = np.zeros(len(choices) + 1, dtype=np.int32)
        np.cumsum([len(node) for node in choices], out=offset[1:])
        token, following = (np.array([entry[column] for entry in flat], dtype=np.int32) for column in (0, 1))
        return cls(offset, token, following)

    def allowed(self, node: int) -> Ints:
        """Ids of the tokens that may come at `node`, sorted."""
        return self.token[self.offset[node] : self.offset[node + 1]]

    def step(self, node: int, token_id: int) -> int:
        """The node after one more token; FREE after a token that no wording goes on with."""
        if node == FREE:
            return FREE
        low, high = int(self.offset[node]), int(self.offset[node + 1])
        place = low + int(np.searchsorted(self.token[low:high], token_id))
        return int(self.following[place]) if place < high and self.token[place] == token_id else FREE


# children of a node by byte; True where a wording ends
_Node = tuple[dict[int, int], bool]


def _tree(wordings: Iterable[bytes]) -> list[_Node]:
    children: list[dict[int, int]] = [{}]
    ends: set[int] = set()
    for wording in wordings:
        node = ROOT
        for byte in wording:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
            node = children[node][byte]
        ends.add(node)
    return [(own, index in ends) for index, own in enumerate(children)]


def _choices(tree: list[_Node], node: int, pieces: TokenPieces) -> list[tuple[int, int]]:
    """Tokens that walk from `node` inside the tree, with the node that they lead to."""
    found: list[tuple[int, int]] = []
    open_paths = [(node, b"")]
    while open_paths:
        here, text = open_paths.pop()
        for byte, child in tree[here][0].items():
            longer = text + bytes([byte])
            found += [(token, FREE if tree[child][1] else child) for token in pieces.of(longer)]
            if len(longer) < pieces.longest:
                open_paths.append((child, longer))
    return found


def _without_dead_ends(choices: list[list[tuple[int, int]]]) -> list[list[tuple[int, int]]]:
    """Leave out tokens after which no wording can be finished."""
    # a child always has a larger number than its parent
    for node in range(len(choices) - 1, -1, -1):
        choices[node] = [(token, after) for token, after in choices[node] if after == FREE or choices[after]]
    return choices
