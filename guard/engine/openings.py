"""The openings of answers that plans name, compiled for the engine's tokenizer; the most recent are kept."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from guard.classifiers.opening_table import OpeningTable, TokenPieces
from guard.classifiers.token_bytes import read_tokenizer

TABLES_KEPT = 256


class CompiledOpenings:
    """Tables by their wordings; call from the thread that steps the engine."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is a Hugging Face fast tokenizer."""
        texts = read_tokenizer(tokenizer).texts
        self._pieces = TokenPieces(texts)
        first = tokenizer.encode("I", add_special_tokens=False)[:1]
        self._spaced = bool(first) and (texts[first[0]] or b"").startswith(b" ")
        self._kept: OrderedDict[tuple[str, ...], OpeningTable] = OrderedDict()

    def of(self, wordings: tuple[str, ...]) -> OpeningTable:
        """The table of these wordings. Raises ConfigurationError when none of them can be written."""
        table = self._kept.get(wordings)
        if table is None:
            table = self._kept[wordings] = OpeningTable.compile(wordings, self._pieces, spaced=self._spaced)
        self._kept.move_to_end(wordings)
        if len(self._kept) > TABLES_KEPT:
            self._kept.popitem(last=False)
        return table
