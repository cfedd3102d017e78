"""Wordings that an answer opens with, followed token by token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.classifiers.opening_table import FREE, ROOT, OpeningTable, TokenPieces
from guard.errors import ConfigurationError

BYTES = [bytes([byte]) for byte in range(256)]
PIECES = TokenPieces([None, *BYTES, b"I ", b"I have", b" no", b"have", b" information", b"I", b" on"])
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


def ways(table: OpeningTable, pieces: list[bytes | None], node: int = ROOT, text: bytes = b"") -> set[bytes]:
    """Every text that the table lets an answer open with."""
    if node == FREE:
        return {text}
    found: set[bytes] = set()
    for token in table.allowed(node).tolist():
        found |= ways(table, pieces, table.step(node, token), text + (pieces[token] or b""))
    return found


def test_every_spelling_of_a_wording_is_open_and_nothing_else() -> None:
    pieces: list[bytes | None] = [None, b"I", b" ", b"no", b" no", b"I no", b"t", b"x", b"not"]
    table = OpeningTable.compile(["I no", "I not"], TokenPieces(pieces))
    assert ways(table, pieces) == {b"I no", b"I not"}
    spelled = set(table.allowed(ROOT).tolist())
    assert spelled == {1, 5}
    assert table.step(ROOT, 5) == FREE


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_each_wording_can_be_written_byte_by_byte(wordings: list[str]) -> None:
    table = OpeningTable.compile(wordings, PIECES)
    for wording in wordings:
        node = ROOT
        for byte in wording.encode():
            if node == FREE:
                break
            assert byte + 1 in table.allowed(node)
            node = table.step(node, byte + 1)
        assert node == FREE


def test_a_token_that_no_wording_goes_on_with_lets_go() -> None:
    table = OpeningTable.compile(["I have"], PIECES)
    assert table.step(ROOT, 1 + ord("x")) == FREE
    assert table.step(FREE, 1 + ord("I")) == FREE


def test_a_wording_may_follow_a_space_where_texts_begin_with_one() -> None:
    pieces = TokenPieces([b" I", b"I", b" know"])
    assert OpeningTable.compile(["I know"], pieces).allowed(ROOT).tolist() == [1]
    assert OpeningTable.compile(["I know"], pieces, spaced=True).allowed(ROOT).tolist() == [0, 1]


def test_tokens_after_which_no_wording_can_be_finished_are_left_out() -> None:
    table = OpeningTable.compile(["ab", "ac!"], TokenPieces([b"a", b"b", b"c", b"ab"]))
    assert table.allowed(ROOT).tolist() == [0, 3]
    assert table.allowed(table.step(ROOT, 0)).tolist() == [1]
    with pytest.raises(ConfigurationError, match="cannot|can be written"):
        OpeningTable.compile(["xyz"], TokenPieces([b"a"]))
