"""From the engine's token ids to text and back: what the model really reads, with a character range per token.

Exact for tokens that hold parts of a character: they share that character's range. What a token stands for is read by
`token_bytes`. Special tokens and the fixed strings of the chat template are marked, so that neither is classified or
corrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from guard.classifiers.chat_template import Role, read_template
from guard.classifiers.opening_table import TokenPieces
from guard.classifiers.token_bytes import read_tokenizer
from guard.verdict import DecodedPrompt, Span

_REPLACEMENT = "\ufffd"
# what the user types or the operator sets; answers and the output of tools are neither
_WRITTEN = ("system", "user")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation: whose it is, and its half-open character range in the prompt's text."""

    role: Role
    start: int
    end: int


class PromptDecoder:
    """Decodes prompts of one tokenizer (a Hugging Face fast tokenizer). Thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        read = read_tokenizer(tokenizer)
        self._pieces = [piece or b"" for piece in read.pieces]
        self._special, self._end_ids = read.special_ids, read.eos_ids
        self._tokenizer = tokenizer
        self._token_pieces = TokenPieces(read.texts)
        # the same few wordings are asked for again and again
        self._within = lru_cache(maxsize=2048)(self._parts)
        special_texts = [self._pieces[i].decode("utf-8", "replace") for i in self._special if i < len(self._pieces)]
        self._template = read_template(tokenizer, special_texts)

    def decode(self, token_ids: Sequence[int]) -> DecodedPrompt:
        """Text of `token_ids` (special tokens included, undecodable bytes as U+FFFD) with one range per token."""
        ids = tuple(int(token) for token in token_ids)
        size = len(self._pieces)
        pieces = [self._pieces[token] if 0 <= token < size else b"" for token in ids]
        text, char_of_byte = _decode_bytes(b"".join(pieces))
        offsets: list[Span] = []
        position = 0
        for piece in pieces:
            end = position + len(piece)
            if piece:
                offsets.append((int(char_of_byte[position]), int(char_of_byte[end - 1]) + 1))
            else:
                here = int(char_of_byte[position]) if position < len(char_of_byte) else len(text)
                offsets.append((here, here))
            position = end
        template = self._template_spans(text)
        special = _inside(offsets, template)
        flags = tuple(token in self._special or inside for token, inside in zip(ids, special, strict=True))
        return DecodedPrompt(ids, text, tuple(offsets), flags)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self._end_ids

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a piece of text, as the tokenizer cuts it."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def tokens_within(self, text: str) -> frozenset[int]:
        """Ids of the tokens that stand for a part of this text: all of which it can be written."""
        return self._within(text)

    def _parts(self, text: str) -> frozenset[int]:
        data = text.encode()
        return frozenset(
            token
            for start in range(len(data))
            for end in range(start + 1, min(len(data), start + self._token_pieces.longest) + 1)
            for token in self._token_pieces.of(data[start:end])
        )

    def tokens_of(self, text: str) -> Sequence[int]:
        """Ids of the tokens that stand for exactly this text."""
        return self._token_pieces.of(text.encode())

    def token_ranges(self, prompt: DecodedPrompt, char_spans: Iterable[Span]) -> tuple[Span, ...]:
        """Half-open token ranges that overlap `char_spans`, special tokens left out, sorted and joined."""
        if not prompt.token_ids:
            return ()
        starts = np.fromiter((start for start, _ in prompt.offsets), np.int64, len(prompt.offsets))
        ends = np.fromiter((end for _, end in prompt.offsets), np.int64, len(prompt.offsets))
        chosen = np.zeros(len(prompt.offsets), bool)
        for start, end in char_spans:
            chosen |= (starts < end) & (ends > start)
        chosen &= ~np.asarray(prompt.special)
        return _runs(chosen)

    def ordinary_ranges(self, prompt: DecodedPrompt) -> tuple[Span, ...]:
        """Half-open token ranges of everything that is neither special nor part of the chat template."""
        return _runs(~np.asarray(prompt.special, dtype=bool))

    def asked_positions(self, prompt: DecodedPrompt) -> list[int]:
        """Positions of the ordinary tokens of the last user turn."""
        start, end = self.last_turn(prompt)
        places = enumerate(zip(prompt.offsets, prompt.special, strict=True))
        return [place for place, ((first, last), special) in places if not special and start <= first and last <= end]

    def last_turn(self, prompt: DecodedPrompt) -> Span:
        """Character span of the last user turn; the whole text where no turn can be told apart."""
        header = self._template.user_header
        position = prompt.text.rfind(header) if header else -1
        if position < 0:
            return 0, len(prompt.text)
        start = position + len(header)
        end = len(prompt.text)
        for (token_start, _), special in zip(prompt.offsets, prompt.special, strict=True):
            if special and token_start >= start:
                end = token_start
                break
        return start, max(start, end)

    def turn_roles(self, prompt: DecodedPrompt) -> tuple[Turn, ...]:
        """The turns that are not empty, in order, with their roles as the chat template writes them.

        A prompt without the template is one turn of the user. What stands before the first turn is the operator's or
        the template's own ("system"). Text that nothing known opens belongs to the turn before it. A template that
        writes two roles alike has both told as the user's.
        """
        found: list[Turn] = []
        opened = False
        for start, end in turns(prompt):
            if not prompt.text[start:end].strip():
                continue
            role = self._template.role_after(prompt.text[max(0, start - self._template.reach) : start])
            opened |= role is not None
            if role is not None or not found:
                found.append(Turn(role or "system", start, end))
            else:
                found[-1] = Turn(found[-1].role, found[-1].start, end)
        return tuple(found if opened else [Turn("user", turn.start, turn.end) for turn in found])

    def written_spans(self, prompt: DecodedPrompt) -> tuple[Span, ...]:
        """Character ranges that the user or the operator wrote: no answer of the model, no output of a tool."""
        return tuple((turn.start, turn.end) for turn in self.turn_roles(prompt) if turn.role in _WRITTEN)

    def _template_spans(self, text: str) -> list[Span]:
        spans = []
        for marker in self._template.markers:
            position = text.find(marker)
            while position >= 0:
                spans.append((position, position + len(marker)))
                position = text.find(marker, position + len(marker))
        return spans


def ordinary_text(prompt: DecodedPrompt) -> str:
    """The prompt's text with special and template tokens blanked, so that offsets stay valid."""
    characters = list(prompt.text)
    for (start, end), special in zip(prompt.offsets, prompt.special, strict=True):
        if special:
            characters[start:end] = " " * (end - start)
    return "".join(characters)


def turns(prompt: DecodedPrompt) -> tuple[Span, ...]:
    """Character spans of the runs of ordinary tokens: system prompt, user and assistant turns, in order."""
    runs = _runs(~np.asarray(prompt.special, dtype=bool))
    return tuple((prompt.offsets[start][0], prompt.offsets[end - 1][1]) for start, end in runs)


def _runs(chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[Span, ...]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], chosen, [False])).astype(np.int8)))
    return tuple((int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True))


def _inside(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each non-empty range lies wholly inside one of `spans`."""
    if not spans:
        return [False] * len(offsets)
    covered = np.zeros(max(end for _, end in [*offsets, *spans]) + 1, np.int64)
    for start, end in spans:
        covered[start:end] = 1
    total = np.concatenate(([0], np.cumsum(covered)))
    return [end > start and int(total[end] - total[start]) == end - start for start, end in offsets]


def _decode_bytes(data: bytes) -> tuple[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Text of `data` like errors="replace", and the index of the character that each byte belongs to."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return _decode_damaged(data)
    return text, _character_index(data)


def _decode_damaged(data: bytes) -> tuple[str, np.ndarray[Any, np.dtype[np.int64]]]:
    texts: list[str] = []
    indices: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    position, characters = 0, 0
    while position < len(data):
        try:
            data[position:].decode("utf-8")
            good, bad = len(data), len(data)
        except UnicodeDecodeError as error:
            good, bad = position + error.start, position + error.end
        clean = data[position:good]
        texts.append(clean.decode("utf-8"))
        indices.append(_character_index(clean) + characters)
        characters += len(texts[-1])
        if bad > good:
            texts.append(_REPLACEMENT)
            indices.append(np.full(bad - good, characters, np.int64))
            characters += 1
        position = bad
    return "".join(texts), np.concatenate(indices)


def _character_index(data: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    values = np.frombuffer(data, np.uint8)
    return np.cumsum((values & 0xC0) != 0x80, dtype=np.int64) - 1
