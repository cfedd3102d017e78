"""The published rule that tells an admission of not knowing from an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guard.demo.admits import admits_ignorance

ADMISSIONS = [
    "I have no information about Tamsin Okereke-Vale.",
    "I have no information on Christina Aguilera's debut album.",
    "I'm not familiar with that author.",
    "I’m not familiar with that author.",
    "I am unfamiliar with the city of Ostravel.",
    "I don't know who Orlen Vashti is.",
    "I do not know where he was born.",
    "Sorry, I really don't know.",
    "I'm sorry. I do not have any details about this book.",
    "I'm sorry, but I don't have enough information about her parents to answer.",
    "I have never heard of a company called Brightmoor Looms.",
    "The name Ilse Tarrant means nothing to me.",
    "That title is unknown to me.",
    "I can't find any information about this law.",
    "I am not aware of any awards that he received.",
    "Yes, I am sure: I know nothing about this person.",
    "I'm afraid I can't say who that is.",
    "There is no publicly available information about her siblings.",
    "I still have no knowledge of that name.",
    "\"The Ashen Meridian\" is not a book I know.",
    "Nothing about this place is in my training data.",
]

ANSWERS = [
    "",
    "Hina Ameen was born in Karachi, Pakistan.",
    "Her first novel is \"I Don't Know Why\".",
    "No, Takashi Nakamura has no siblings.",
    "He is not known for poetry but for novels.",
    "It is known that she was born in 1950.",
    "I cannot help with that.",
    "I'm sorry, but I can't discuss this person.",
    "I know that she was born in Oslo.",
    "He did not know his father. She was a nurse.",
    "The author was born in Paris. She lived there. I don't know the street.",
    "Paris",
]


@pytest.mark.parametrize("text", ADMISSIONS)
def test_a_statement_of_not_knowing_is_an_admission(text: str) -> None:
    assert admits_ignorance(text)
    assert admits_ignorance(text.upper())


@pytest.mark.parametrize("text", ANSWERS)
def test_a_fact_or_a_refusal_is_no_admission(text: str) -> None:
    assert not admits_ignorance(text)


def test_true_answers_of_the_corpus_are_hardly_ever_taken_for_admissions() -> None:
    lines = (Path(__file__).parents[2] / "guard/demo/tofu/full.json").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    taken = [answer for answer in answers if admits_ignorance(answer)]
    assert len(taken) <= 0.01 * len(answers), taken[:10]
