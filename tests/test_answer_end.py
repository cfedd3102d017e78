"""Where an answer of ignorance ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.answer_end import MAX_CHARACTERS, AnswerEnd

WORDINGS = (
    "I have no information on", "I'm sorry, but I know nothing about", "I'm sorry, I don't know.",
    "… I don't know by whom.",
    "我不了解",
)


def read(text: str, sentences: int = 1, step: int = 1, rest: str = "") -> str:
    """What may be said of a whole answer that comes in pieces of `step` characters."""
    end = AnswerEnd(WORDINGS, sentences, rest)
    said = ""
    for start in range(0, len(text), step):
        ending = end.feed(text[start : start + step])
        said += ending.text
        if ending.done:
            return said
    return said + end.flush().text


@pytest.mark.parametrize(("text", "wanted"), [
    ("I have no information on John D. Rockefeller's oil, but he was rich. So",
     "I have no information on John D. Rockefeller's oil."),
    ("I'm sorry, but I know nothing about 1,000 things. Then", "I'm sorry, but I know nothing about 1,000 things."),
    ('I have no information on "The Shining"\n\nHowever', 'I have no information on "The Shining".'),
    ("I'm sorry, I don't know. But it is", "I'm sorry, I don't know."),
    ("I have no information on him", "I have no information on him."),
    ("… I don't know by whom. It", "… I don't know by whom."),
    ("我不了解这个人，但是", "我不了解这个人。"),
    ("I have no information on that - the best", "I have no information on that."),
])
def test_an_answer_ends_with_its_first_clause(text: str, wanted: str) -> None:
    assert read(text) == wanted


@pytest.mark.parametrize("tail", ["", ".", " .", ". And", ", but", "\n"])
@pytest.mark.parametrize("step", [1, 4, 50])
def test_an_answer_that_says_nothing_after_its_wording_is_completed(tail: str, step: int) -> None:
    assert read(WORDINGS[0] + tail, step=step, rest="that") == "I have no information on that."
    assert read("我不了解" + tail, step=step, rest="这方面的信息") == "我不了解这方面的信息。"
    assert read("I'm sorry, I don't know.", step=step, rest="that") == "I'm sorry, I don't know."


@pytest.mark.parametrize("step", [1, 5, 100])
@pytest.mark.parametrize(("tail", "wanted"), [
    (" the first khan of the khan of the empire of the khan of the", " the first khan."),
    (" the song or the brother's brother's brother's brother's", " the song or the brother's."),
    (" the name of the lead singer of the band", " the name of the lead singer of the band."),
])
def test_an_answer_ends_before_it_repeats_itself(tail: str, wanted: str, step: int) -> None:
    assert read(WORDINGS[0] + tail + " end", step=step).removesuffix(" end.") == (WORDINGS[0] + wanted).removesuffix(
        "." if wanted.endswith("band.") else ""
    )


def test_more_sentences_may_be_asked_for() -> None:
    text = "I have no information on X, sadly. Ask me something else. Really."
    assert read(text, 2) == "I have no information on X, sadly. Ask me something else."


def test_an_answer_without_an_end_is_cut_at_a_word() -> None:
    said = read("I have no information on " + "words and " * 200)
    assert len(said) <= MAX_CHARACTERS + 1
    assert said.endswith((" and.", " words."))


@given(st.text(alphabet="abc ,.;:\"'\n-1我，。", max_size=60), st.integers(1, 3), st.integers(1, 7))
def test_pieces_do_not_matter_and_nothing_is_invented(tail: str, sentences: int, step: int) -> None:
    text = f"{WORDINGS[0]} {tail}"
    said = read(text, sentences, step)
    assert said == read(text, sentences, 1)
    assert text.startswith(said) or text.startswith(said[:-1])
