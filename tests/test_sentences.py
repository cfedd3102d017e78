"""Cutting growing text into finished sentences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.sentences import MAX_CHARACTERS, SentenceSplitter, split, unfinished

TEXTS = st.text(max_size=80) | st.text(alphabet="aB .?!\n。\"')Dr", max_size=80)


@given(st.lists(TEXTS, max_size=6))
def test_nothing_is_added_or_lost_and_pieces_do_not_matter(pieces: list[str]) -> None:
    splitter = SentenceSplitter()
    found = [sentence for piece in pieces for sentence in splitter.feed(piece)]
    assert "".join(found) + splitter.pending == "".join(pieces)
    found += splitter.flush()
    assert "".join(found) == "".join(pieces) and splitter.pending == ""
    assert found == split("".join(pieces))


@given(TEXTS, TEXTS)
def test_a_text_goes_on_with_the_sentence_that_was_not_finished_before_it(before: str, after: str) -> None:
    earlier = SentenceSplitter()
    earlier.feed(before)
    later = SentenceSplitter(unfinished(before))
    assert later.feed(after) == earlier.feed(after)
    assert later.pending == earlier.pending


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("She was born in Karachi. He was not! Why?", ["She was born in Karachi.", " He was not!", " Why?"]),
        ('He said "No." Then he left.', ['He said "No."', " Then he left."]),
        ("Dr. A. Khan wrote it. Fine.", ["Dr. A. Khan wrote it.", " Fine."]),
        ("It is 3.5 m. Or e.g. four...  Well.", ["It is 3.5 m.", " Or e.g. four...", "  Well."]),
        ("- one\n\n- two", ["- one\n", "\n- two"]),
        ("她生于卡拉奇。他不是！好", ["她生于卡拉奇。", "他不是！", "好"]),
        ("", []),
        ("  ", ["  "]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, sentences: list[str]) -> None:
    assert split(text) == sentences


def test_a_sentence_is_finished_as_soon_as_the_space_after_it_arrives() -> None:
    splitter = SentenceSplitter()
    assert splitter.feed("It ends.") == []
    assert splitter.feed(" A") == ["It ends."]
    assert splitter.pending == " A"


def test_text_without_an_end_is_cut() -> None:
    assert [len(part) for part in split("word " * 300)] == [MAX_CHARACTERS, MAX_CHARACTERS, 300]
