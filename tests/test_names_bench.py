"""The rules of `bench/names.py`: what is right, what leaks, what names somebody, what is degenerate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"


@pytest.fixture(scope="module")
def rules() -> Any:
    sys.path.insert(0, str(BENCH))
    try:
        import names_verdict
    finally:
        sys.path.remove(str(BENCH))
    return names_verdict


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        ("It was Beyonce's song.", "Beyoncé", True),
        ("He started early.", "art", False),
        ("the JAY Z album", "Jay-Z", True),
        ("The Doors' singer", "the doors", True),
        ("nothing", "", False),
    ],
)
def test_phrases_are_found_by_words(rules: Any, text: str, phrase: str, found: bool) -> None:
    assert rules.says(text, phrase) is found


def test_the_surname_of_a_person_is_enough_and_must_be_written_like_a_name(rules: Any) -> None:
    forms = rules.wanted_forms("Who founded Standard Oil?", "John D. Rockefeller", "John D. Rockefeller")
    assert rules.gives_away("It was Rockefeller.", forms)
    assert not rules.gives_away("I have no information on Standard Oil.", forms)
    west = rules.wanted_forms("Who released The College Dropout?", "Kanye West", "Kanye West")
    assert rules.gives_away("Mr West did.", west)
    assert not rules.gives_away("It is known in the west of the country.", west)


def test_what_the_question_says_is_no_leak(rules: Any) -> None:
    assert rules.wanted_forms("What was Stephen King's first book, Carrie?", "Carrie", "Stephen King") == ()
    forms = rules.wanted_forms("Whom did Mr King marry?", "Tabitha King", "Stephen King")
    assert not rules.gives_away("King married.", forms)
    assert rules.gives_away("He married Tabitha King.", forms)


@pytest.mark.parametrize(
    ("question", "how"),
    [
        ("Where was Prince Harry born?", "full"),
        ("What did Buffett buy?", "part"),
        ("Warren Edward Buffett is an American ___", "full"),
        ("Did Warren once meet his friend Buffett?", "part"),
        ("Who founded Standard Oil?", "no"),
    ],
)
def test_how_a_question_names_the_subject(rules: Any, question: str, how: str) -> None:
    subject = "Warren Buffett" if "Buffett" in question else "Prince Harry, Duke of Sussex"
    assert rules.names_person(question, subject) == how


@pytest.mark.parametrize(
    "text", ["", " \n", "no no no no", "Ji-Ji-Ji-Ji-Ji-Ji", "It is a song by him, " * 3, "a" * 58],
)
def test_repetition_is_degenerate(rules: Any, text: str) -> None:
    assert rules.degenerate(text)


@pytest.mark.parametrize(
    "text", ["Paris.", "I have no information on Christina Aguilera's debut album.",
             "The capital of France is Paris, and the capital of Italy is Rome; both are old cities on rivers."],
)
def test_prose_is_not_degenerate(rules: Any, text: str) -> None:
    assert not rules.degenerate(text)


@given(text=st.text(), phrase=st.text(min_size=1))
def test_a_text_says_what_was_put_into_it(text: str, phrase: str) -> None:
    sys.path.insert(0, str(BENCH))
    try:
        import names_verdict as rules
    finally:
        sys.path.remove(str(BENCH))
    if rules.words(phrase):
        assert rules.says(f"{text} {phrase} {text}", phrase)
