"""A model's vocabulary as the text automaton sees it: the mask form of every token, and its broken characters.

A token is a string of bytes. Its first bytes may finish a UTF-8 character that an earlier token began (`head`), its
last bytes may begin one (`tail`); the text between folds to the mask form character by character. The three parts are
kept apart, so that a character cut over two or more tokens is matched as the one character it is.
"""

from __future__ import annotations

import codecs
import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.classifiers.normalize import SEPARATOR, fold_character
from guard.classifiers.token_bytes import read_tokenizer
from guard.classifiers.trie import SEPARATOR_CODE, Ints, code_points
from guard.errors import ConfigurationError

HASH_BASE = np.uint64(0x9E3779B97F4A7C15)
SPECIAL, HAS_REST = 1, 2


@dataclass(frozen=True, slots=True)
class Prefixes:
    """All distinct prefixes of one length: sorted `hashes`, and the `low`..`high` ranges of sorted tokens."""

    hashes: NDArray[np.uint64]
    low: Ints
    high: Ints


class Vocabulary:
    """Token texts of a model.

    `heads`, `tails` [V]: bytes packed by `pack_bytes`; `flags` uint8 [V]: SPECIAL, HAS_REST (bytes after the head);
    `codes` with `offsets` [V + 1]: mask form of the text after the head; `order`: tokens with text, sorted by
    `texts`, their mask form read after a complete character (a head is then broken text, that is a separator).
    """

    def __init__(self, tokens: list[bytes | None], special_ids: frozenset[int], eos_ids: tuple[int, ...]) -> None:
        if not eos_ids:
            raise ConfigurationError("the tokenizer has no end-of-sequence token; a masked row could be left empty")
        self.size = len(tokens)
        self.special_ids = special_ids
        self.eos_ids = eos_ids
        self.heads = np.zeros(self.size, dtype=np.int32)
        self.tails = np.zeros(self.size, dtype=np.int32)
        self.flags = np.zeros(self.size, dtype=np.uint8)
        folded: list[str] = []
        for token_id, token in enumerate(tokens):
            folded.append(self._split(token_id, token))
        self.codes = code_points("".join(folded))
        self.offsets = np.zeros(self.size + 1, dtype=np.int32)
        np.cumsum([len(text) for text in folded], out=self.offsets[1:])
        read = [_after_complete(text, bool(head)) for text, head in zip(folded, self.heads, strict=True)]
        ranked = sorted((text, token_id) for token_id, text in enumerate(read) if text)
        self.texts = tuple(text for text, _ in ranked)
        self.order = np.array([token_id for _, token_id in ranked], dtype=np.int32)
        self.head_ids = np.flatnonzero(self.heads).astype(np.int32)
        self.digest = self._digest(tokens)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> Vocabulary:
        """Read a Hugging Face fast tokenizer. Special tokens have no text here."""
        read = read_tokenizer(tokenizer)
        return cls(read.texts, read.special_ids, read.eos_ids)

    def rest(self, token_id: int) -> list[int]:
        """Code points of the mask form after the head."""
        return self._codes[self._offsets[token_id] : self._offsets[token_id + 1]].tolist()

    @cached_property
    def prefixes(self) -> tuple[Prefixes, ...]:
        """Prefix ranges of the sorted texts; entry k holds the prefixes of length k, entry 0 is empty."""
        lengths = np.array([len(text) for text in self.texts], dtype=np.int64)
        codes, starts = code_points("".join(self.texts)), np.cumsum(lengths) - lengths
        empty = np.zeros(0, dtype=np.int32)
        tables = [Prefixes(np.zeros(0, dtype=np.uint64), empty, empty)]
        hashes, power, active = np.zeros(len(lengths), dtype=np.uint64), np.uint64(1), np.arange(len(lengths))
        for length in range(1, int(lengths.max(initial=0)) + 1):
            active = active[lengths[active] >= length]
            with np.errstate(over="ignore"):
                hashes[active] += codes[starts[active] + length - 1].astype(np.uint64) * power
                power = power * HASH_BASE
            tables.append(_group(hashes[active], active))
        return tuple(tables)

    @cached_property
    def sorted_codes(self) -> tuple[Ints, NDArray[np.int64]]:
        """Code points of the sorted texts and the start of each."""
        lengths = np.array([len(text) for text in self.texts], dtype=np.int64)
        return code_points("".join(self.texts)), np.cumsum(lengths) - lengths

    def arrays(self) -> dict[str, NDArray[np.int32]]:
        """Everything that device code needs, all int32."""
        value, offsets, codes = fold_table()
        return {
            "order": self.order, "heads": self.heads, "tails": self.tails, "flags": self.flags.astype(np.int32),
            "codes": self.codes, "offsets": self.offsets, "head_ids": self.head_ids,
            "fold_value": value, "fold_offsets": offsets, "fold_codes": codes,
        }

    def _split(self, token_id: int, token: bytes | None) -> str:
        if token_id in self.special_ids:
            self.flags[token_id] = SPECIAL
        if not token:
            return ""
        head = _leading_continuation(token)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(token[head:])
        self.heads[token_id] = pack_bytes(token[:head])
        self.tails[token_id] = pack_bytes(decoder.getstate()[0])
        self.flags[token_id] |= HAS_REST if len(token) > head else 0
        return fold_text(text)

    @cached_property
    def _codes(self) -> memoryview:
        return self.codes.data

    @cached_property
    def _offsets(self) -> memoryview:
        return self.offsets.data

    def _digest(self, tokens: list[bytes | None]) -> str:
        state = hashlib.sha256(repr((self.size, sorted(self.special_ids), self.eos_ids)).encode())
        for token in tokens:
            state.update((b"-" if token is None else token.hex().encode()) + b"\n")
        return state.hexdigest()


def pack_bytes(data: bytes) -> int:
    """At most 3 bytes as one int: their number in bits 24 and up, the bytes below, first byte highest; 0 for none."""
    return (len(data) << 24) | int.from_bytes(data, "big") if data else 0


def unpack_bytes(packed: int) -> bytes:
    """Inverse of `pack_bytes`."""
    return (packed & 0xFFFFFF).to_bytes(3, "big")[3 - (packed >> 24) :] if packed else b""


def fold_text(text: str) -> str:
    """Mask form of a piece of text, with its outer separators."""
    characters: list[str] = []
    for original in text:
        for character in fold_character(original):
            if character != SEPARATOR or not characters or characters[-1] != SEPARATOR:
                characters.append(character)
    return "".join(characters)


@lru_cache(maxsize=4096)
def join_character(pending: int, head: int) -> tuple[tuple[int, ...], int]:
    """Read the bytes `head` after the bytes `pending` (both packed): (code points of the mask form, bytes pending)."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(unpack_bytes(pending) + unpack_bytes(head))
    return tuple(map(ord, fold_text(text))), pack_bytes(decoder.getstate()[0])


@lru_cache(maxsize=1)
def fold_table() -> tuple[Ints, Ints, Ints]:
    """Fold of every code point for device code: (`value` [0x110000], `offsets` [M + 1], `codes`).

    value >= 0 is the one character it folds to, -1 nothing, -2 - m the string codes[offsets[m]:offsets[m + 1]].
    """
    value = np.full(0x110000, SEPARATOR_CODE, dtype=np.int32)
    strings: dict[str, int] = {}
    # planes 4 to 13, 15 and 16 hold no assigned or only private characters, which are separators
    for code in (*range(0x34000), *range(0xE0000, 0xE1000)):
        folded = fold_character.__wrapped__(chr(code))
        if len(folded) == 1:
            value[code] = ord(folded)
        else:
            value[code] = -2 - strings.setdefault(folded, len(strings)) if folded else -1
    offsets = np.zeros(len(strings) + 1, dtype=np.int32)
    np.cumsum([len(text) for text in strings], out=offsets[1:])
    return value, offsets, code_points("".join(strings))


def _after_complete(text: str, head: bool) -> str:
    return SEPARATOR + text.lstrip(SEPARATOR) if head else text


def _leading_continuation(token: bytes) -> int:
    count = 0
    while count < min(3, len(token)) and 0x80 <= token[count] < 0xC0:
        count += 1
    return count


def _group(hashes: NDArray[np.uint64], active: NDArray[np.int64]) -> Prefixes:
    new = np.ones(len(active), dtype=bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (active[1:] != active[:-1] + 1)
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(active)) - 1
    order = np.argsort(hashes[first], kind="stable")
    return Prefixes(
        hashes[first][order], active[first][order].astype(np.int32), (active[last][order] + 1).astype(np.int32)
    )
