"""The text automaton of one forget-list version: which tokens would complete a forbidden string.

Strings are matched on text, so the same string spelled by other tokens is caught as well. The state of a request is
(node, pending): a node of the trie and the bytes of a character that is not finished yet, packed in an int.

A known gap: some decoders (SentencePiece with byte fallback) turn a whole run of byte tokens into U+FFFD when any part
of it is ill-formed, valid characters included. Read token by token, the edge of a word can then differ from that of the
final text, and a string right after such a run can be missed here. The check of the decoded text in `guard.stream`
finds it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from guard.classifiers.automaton_build import completion_ranges, shared_tokens
from guard.classifiers.normalize import mask_form
from guard.classifiers.trie import SEPARATOR_CODE, WORD_START, Ints, Trie, build_trie
from guard.classifiers.vocabulary import HAS_REST, SPECIAL, Vocabulary, fold_text, join_character
from guard.errors import PackError

__all__ = ["START", "Automaton", "State", "Vocabulary"]
TABLE_ARRAYS = ("entry_offset", "entry_low", "entry_high", "entry_pattern", "shared_token", "shared_pattern")
NO_PATTERNS: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class State:
    """Where a text is: trie node, and the packed bytes of an unfinished UTF-8 character."""

    node: int
    pending: int = 0


START = State(WORD_START)


class Automaton:
    """Sorted distinct `patterns` in mask form, compiled for the vocabulary with digest `vocabulary_digest`.

    `digest` is the SHA-256 of everything: it names the automaton in plans, files and device slots.
    """

    def __init__(self, patterns: tuple[str, ...], vocabulary_digest: str, arrays: dict[str, Ints]) -> None:
        self.patterns = patterns
        self.vocabulary_digest = vocabulary_digest
        self.arrays = arrays
        self.trie = Trie(arrays)

    @classmethod
    def compile(cls, patterns: Sequence[str], vocabulary: Vocabulary) -> Automaton:
        """Compile `patterns` (any writing; those without a letter or digit are dropped) for `vocabulary`."""
        forms = tuple(sorted({form for form in map(mask_form, patterns) if form}))
        trie, spelling = build_trie(forms)
        arrays = {**trie.arrays, **completion_ranges(trie, spelling, vocabulary), **shared_tokens(trie, vocabulary)}
        return cls(forms, vocabulary.digest, arrays)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the vocabulary digest, the patterns and the arrays."""
        state = hashlib.sha256(json.dumps([self.vocabulary_digest, self.patterns]).encode())
        for name in sorted(self.arrays):
            state.update(name.encode() + self.arrays[name].astype("<i4", copy=False).tobytes())
        return state.hexdigest()

    @property
    def bytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(array.nbytes for array in self.arrays.values())

    def save(self, path: Path) -> None:
        """Write a safetensors file; a file that is already there is replaced in one step."""
        patterns = np.frombuffer("\n".join(self.patterns).encode(), dtype=np.uint8)
        tensors: dict[str, np.ndarray] = {**self.arrays, "patterns": patterns}
        metadata = {"format": "guard-automaton-1", "vocabulary": self.vocabulary_digest, "digest": self.digest}
        # a name of its own: two tenants with the same list are compiled at the same time
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
        save_file(tensors, temporary, metadata=metadata)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path, vocabulary_digest: str, digest: str) -> Automaton:
        """Read a file written by `save`. Raises PackError when it is damaged, altered or for another vocabulary."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                names = set(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise PackError(f"constraint file {path.name} cannot be read: {error}") from error
        made_for = metadata.get("vocabulary", "")
        if made_for != vocabulary_digest:
            raise PackError(
                f"constraint file {path.name} is for vocabulary {made_for[:16]}, the model has {vocabulary_digest[:16]}"
            )
        text = tensors.pop("patterns", np.zeros(0, dtype=np.uint8)).tobytes().decode(errors="replace")
        if not {*TABLE_ARRAYS, "first_child", "label", "fail", "output", "pattern"} <= set(tensors):
            raise PackError(f"constraint file {path.name} lacks tensors")
        automaton = cls(tuple(text.split("\n")) if text else (), made_for, tensors)
        if automaton.digest != digest:
            raise PackError(f"constraint file {path.name} has digest {automaton.digest[:16]}, expected {digest[:16]}")
        return automaton

    def occurrences(self, text: str) -> frozenset[int]:
        """Indices of the patterns that `text` contains."""
        node = WORD_START
        found: set[int] = set()
        for character in fold_text(text):
            node = self.trie.step(node, ord(character))
            found.update(self.trie.completed(node))
        return frozenset(found)

    def advance(self, state: State, token_id: int, vocabulary: Vocabulary, *, skip_special: bool = False) -> State:
        """State after one more token. Special tokens are a word boundary, or nothing at all with `skip_special`."""
        return self._walk(state, token_id, vocabulary, skip_special, None)[0]

    def completes(self, state: State, token_id: int, vocabulary: Vocabulary, exempt: frozenset[int]) -> bool:
        """Whether the token's text completes a pattern that is not in `exempt`."""
        return self._walk(state, token_id, vocabulary, True, exempt)[1]

    def _walk(
        self, state: State, token_id: int, vocabulary: Vocabulary, skip_special: bool, exempt: frozenset[int] | None
    ) -> tuple[State, bool]:
        if not 0 <= token_id < vocabulary.size:
            return state, False
        flags, head = int(vocabulary.flags[token_id]), int(vocabulary.heads[token_id])
        if flags & SPECIAL:
            return (state if skip_special else START), False
        if not flags and not head:
            return state, False
        codes, pending = self._opening(state.pending, head, bool(flags & HAS_REST))
        if flags & HAS_REST:
            codes += vocabulary.rest(token_id)
            pending = int(vocabulary.tails[token_id])
        node, completed = state.node, False
        for code in codes:
            node = self.trie.step(node, code)
            if exempt is not None and self.trie.completes(node, exempt):
                completed = True
        return State(node, pending), completed

    @staticmethod
    def _opening(pending: int, head: int, has_rest: bool) -> tuple[list[int], int]:
        """Characters that the token's head makes of the pending bytes, and the bytes that stay pending."""
        if not head:
            return ([SEPARATOR_CODE] if pending else []), 0
        codes, left = join_character(pending, head)
        # a character that the rest of the token cuts off is broken text, that is a separator
        return [*codes, *([SEPARATOR_CODE] if left and has_rest else [])], left

    def banned(self, state: State, vocabulary: Vocabulary, exempt: frozenset[int] = NO_PATTERNS) -> Ints:
        """Ids of the tokens (sorted, distinct) that would complete a pattern that is not in `exempt`."""
        if not state.pending:
            return np.union1d(self.local(state.node, vocabulary, exempt), self.shared(exempt))
        # tokens that do not continue the unfinished character turn it into a separator
        node = self.trie.step(state.node, SEPARATOR_CODE)
        whole = np.union1d(self.local(node, vocabulary, exempt), self.shared(exempt))
        whole = whole[vocabulary.heads[whole] == 0]
        broken = [t for t in vocabulary.head_ids.tolist() if self.completes(state, t, vocabulary, exempt)]
        return np.union1d(whole, np.array(broken, dtype=np.int32))

    def local(self, node: int, vocabulary: Vocabulary, exempt: frozenset[int]) -> Ints:
        """Tokens that complete a pattern begun before them, read after a complete character."""
        offset, low, high, pattern = self._entries
        pieces = []
        for suffix in self.trie.chain(node):
            for entry in range(offset[suffix], offset[suffix + 1]):
                if pattern[entry] not in exempt:
                    pieces.append(vocabulary.order[low[entry] : high[entry]])
        if not pieces:
            return np.zeros(0, dtype=np.int32)
        return np.unique(np.concatenate(pieces)) if len(pieces) > 1 else np.sort(pieces[0])

    @cached_property
    def _entries(self) -> tuple[memoryview, ...]:
        # reading single numbers through a memoryview costs a third of doing it through numpy
        return tuple(np.ascontiguousarray(self.arrays[name]).data for name in TABLE_ARRAYS[:4])

    def begun(self, node: int, vocabulary: Vocabulary, exempt: frozenset[int]) -> Ints:
        """`local` without the tokens of `shared`."""
        own, shared = self.local(node, vocabulary, exempt), self.shared(exempt)
        return np.setdiff1d(own, shared, assume_unique=True) if len(own) and len(shared) else own

    def shared(self, exempt: frozenset[int]) -> Ints:
        """Tokens that hold a whole pattern."""
        if not exempt:
            return self._shared_all
        keep = ~np.isin(self.arrays["shared_pattern"], np.array(sorted(exempt), dtype=np.int32))
        return np.unique(self.arrays["shared_token"][keep])

    @cached_property
    def _shared_all(self) -> Ints:
        return np.unique(self.arrays["shared_token"])
