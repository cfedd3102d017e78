"""The one reader of a tokenizer: which bytes each token id stands for, which ids are special, which end a text.

The tokenizer's own decoder decides. Byte-level vocabularies write bytes as printable characters and are read by that
table; for all others the decoder is asked what it makes of each token in the middle of a text. What a decoder does to
the ends of a whole text (a first space that Metaspace or Strip takes away) belongs to no token and is left out.

A tokenizer without a decoder only joins its tokens by spaces. Where its pre-tokenizer says how text was turned into
tokens, the reader turns them back that way: it is the text that the model was given and that people read in the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from guard.errors import ConfigurationError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_MARK = "\u2581"
# stands around a token while the decoder is asked; private use, so no vocabulary's rule knows it
_ANCHOR = "\ue0a0"


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """What a tokenizer's ids stand for.

    `pieces[id]` are the token's bytes, None for an id without a token; special tokens have their literal text.
    `special_ids` are tokens that steer the model and are no text; `eos_ids` those that end a text.
    """

    pieces: tuple[bytes | None, ...]
    special_ids: frozenset[int]
    eos_ids: tuple[int, ...]

    @property
    def texts(self) -> list[bytes | None]:
        """`pieces` of the tokens that are text: None for special tokens, too."""
        return [None if index in self.special_ids else piece for index, piece in enumerate(self.pieces)]


def read_tokenizer(tokenizer: Any) -> TokenBytes:
    """Read a Hugging Face fast tokenizer: byte-level BPE, SentencePiece style, word pieces.

    Raises ConfigurationError for one without a `tokenizer.json`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        raise ConfigurationError("the guard needs a fast tokenizer (tokenizer.json)")
    added = tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special} | {int(i) for i in tokenizer.all_special_ids}
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    pieces: list[bytes | None] = [None] * (max([*vocabulary.values(), *added], default=-1) + 1)
    read = _reader(backend)
    for piece, index in vocabulary.items():
        pieces[index] = read(piece)
    for index, token in added.items():
        pieces[index] = token.content.encode() if index in special else _added(token.content, read)
    eos = tokenizer.eos_token_id
    return TokenBytes(tuple(pieces), frozenset(special), () if eos is None else (int(eos),))


def _reader(backend: Any) -> Callable[[str], bytes]:
    """How one token of this tokenizer is turned into bytes."""
    description = json.loads(backend.to_str())
    before = json.dumps([description.get("normalizer"), description.get("pre_tokenizer")], ensure_ascii=False)
    # a byte-level pre-tokenizer has written every token in that alphabet, whatever a decoder makes of it
    if '"ByteLevel"' in before or '"ByteLevel"' in json.dumps(description.get("decoder")):
        return _byte_level
    decoder = backend.decoder
    if decoder is None:
        pieces = _WORD_MARK in before or bool(description["model"].get("byte_fallback"))
        return _sentence_piece if pieces else _joined_by_spaces
    empty: str = decoder.decode([_ANCHOR, _ANCHOR])
    if not (empty.startswith(_ANCHOR) and empty.endswith(_ANCHOR)):
        return _sentence_piece
    tail = empty[len(_ANCHOR) :]

    def inside(piece: str) -> str:
        text: str = decoder.decode([_ANCHOR, piece, _ANCHOR])
        return text[len(_ANCHOR) : len(text) - len(tail)]

    falls_back = inside("<0x41>") == "A"

    def read(piece: str) -> bytes:
        return _sentence_piece(piece) if falls_back and _BYTE_TOKEN.fullmatch(piece) else inside(piece).encode()

    return read


def _added(content: str, read: Callable[[str], bytes]) -> bytes:
    """Bytes of an added token. One that the decoder breaks keeps its text: as that it is found in a prompt."""
    data = read(content)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return content.encode()
    return data


def _byte_level(piece: str) -> bytes:
    table = _byte_of_character()
    return bytes(table[c] for c in piece) if all(c in table for c in piece) else piece.encode()


def _sentence_piece(piece: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_WORD_MARK, " ").encode()


def _joined_by_spaces(piece: str) -> bytes:
    return b" " + piece.encode()


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes. Source: openai/gpt-2, encoder.py."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table
