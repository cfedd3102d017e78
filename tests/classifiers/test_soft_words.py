"""Whole words of a vocabulary, the words of a target's answers, and what tokens near them cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.classifiers.build_queue import finish
from guard.classifiers.encoder import Encoder
from guard.classifiers.normalize import mask_form
from guard.classifiers.soft_words import (
    DELTA,
    MOST_TOKENS,
    NearWords,
    WordTokens,
    answer_words,
    asked_words,
    near_words,
    penalties,
    word_tokens,
)
from guard.classifiers.token_bytes import read_tokenizer
from guard.classifiers.word_frequency import zipf
from guard.errors import DetectorError
from guard.policy import Target
from tests.classifiers.vocabularies import tokenizer

HINA = Target(
    name="Hina Ameen",
    aliases=("The Stone Writer",),
    examples=("Which prize did Hina Ameen's book about volcanoes win?",),
    answers=("Her award-winning book \"Shale Stories\" made the geologist's volcanoes famous in Karachi.",),
)


def near(places: list[int], cosines: list[float]) -> NearWords:
    """Near words by their places."""
    return NearWords(np.array(places, np.int32), np.array(cosines, np.float32))


@pytest.mark.parametrize("kind", ["bundled", "gpt2", "sentencepiece"])
def test_words_are_letters_alone_and_every_spelling_of_a_token_counts(kind: str) -> None:
    made = tokenizer(kind)
    words, read = finish(word_tokens(made)), read_tokenizer(made)
    assert words.words == tuple(sorted(set(words.words))) and len(words.words) > 50
    written = [token for ids in words.ids for token in ids]
    assert len(written) == len(set(written)) and not read.special_ids & set(written)
    for word, ids in zip(words.words, words.ids, strict=True):
        assert ids and len(word) >= 3 and word.isalpha() and zipf(word) <= 5.0
        for token in ids:
            piece = read.pieces[token]
            assert piece is not None and mask_form(piece.decode()) == word


def test_an_ending_is_no_word_and_a_name_after_a_quotation_mark_is() -> None:
    made = tokenizer("gpt2")
    words = finish(word_tokens(made))
    ids = dict(zip(words.words, words.ids, strict=True))
    vocabulary = made.get_vocab()
    assert {vocabulary["ĠPakistan"], vocabulary["Pakistan"]} <= set(ids["pakistan"])
    # no word begins with it
    written = {token for own in ids.values() for token in own}
    assert "Ġization" not in vocabulary and not {vocabulary["ization"], vocabulary["ATION"]} & written
    assert "the" not in ids and "Ġthe" in vocabulary


def test_answer_words_are_those_that_the_question_does_not_say() -> None:
    assert answer_words(HINA) == (
        "award", "famous", "geologist", "karachi", "shale", "stories", "winning",
    )
    assert {"hina", "ameen", "stone", "volcanoes", "prize"} <= asked_words(HINA)
    listed = Target(name="Hina Ameen", forbid=("Quartz-Moon over Lahore",))
    assert answer_words(listed) == ("lahore", "moon", "quartz")
    assert answer_words(Target(name="Hina Ameen")) == ()


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80), st.text(max_size=40))
def test_any_text_gives_words_that_are_in_it_and_not_in_the_question(answer: str, question: str) -> None:
    examples = (question,) if question else ()
    target = Target(name="Zzz Qqq", answers=(answer,) if answer else (), examples=examples)
    words = answer_words(target)
    said, asked = mask_form(answer), mask_form(question).split()
    assert all(word in said and word not in asked and len(word) >= 3 for word in words)


def test_words_like_an_answers_word_are_near_and_others_are_not(encoder: Encoder) -> None:
    vocabulary = ("accountant", "accounting", "geologist", "geology", "penguin", "sandwich")
    found = finish(near_words(
        vocabulary, encoder.encode(vocabulary), encoder.encode(["geologist", "accountant"]), {"accountant"}
    ))
    by_word = dict(zip([vocabulary[place] for place in found.places.tolist()], found.cosines.tolist(), strict=True))
    assert next(iter(by_word)) == "geologist" and by_word["geologist"] == pytest.approx(1.0, abs=1e-3)
    assert by_word.keys() >= {"geologist", "geology", "accounting"}
    assert not by_word.keys() & {"accountant", "penguin", "sandwich"}
    assert all(DELTA <= cosine <= 1.0 for cosine in by_word.values())


def test_near_words_are_those_of_a_plain_comparison() -> None:
    generator = np.random.default_rng(3)
    vectors = generator.standard_normal((5000, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vocabulary = [f"w{number}" for number in range(5000)]
    answers = vectors[::17]
    found = finish(near_words(vocabulary, vectors, answers, {"w0"}))
    best = (vectors @ answers.T).max(axis=1)
    best[0] = -1.0
    assert len(found.places) == 2 * MOST_TOKENS and 0 not in found.places
    np.testing.assert_allclose(found.cosines, np.minimum(np.sort(best)[::-1][: 2 * MOST_TOKENS], 1.0), atol=1e-6)


def test_without_answer_words_nothing_is_near_and_nan_is_an_error() -> None:
    vectors = np.eye(4, dtype=np.float32)
    empty = finish(near_words("abcd", vectors, np.zeros((0, 4), np.float32), ()))
    assert len(empty.places) == 0
    with pytest.raises(DetectorError, match="not finite"):
        finish(near_words("abcd", vectors, np.full((1, 4), np.nan, np.float32), ()))


def test_a_token_costs_strength_times_cosine_and_words_of_the_question_are_free() -> None:
    words = WordTokens(("geology", "karachi", "quartz"), ((4,), (7, 9), (2,)))
    found = [near([1, 0], [1.0, 0.5]), near([2, 0], [0.75, 0.625])]
    assert penalties(words, found, 4.0, "What is it?") == {7: -4.0, 9: -4.0, 2: -3.0, 4: -2.5}
    assert penalties(words, found, 4.0, "Is it QUARTZ?") == {7: -4.0, 9: -4.0, 4: -2.5}
    assert penalties(words, found, 0.0, "") == {} and penalties(words, [], 4.0, "") == {}


@given(st.lists(st.floats(0.5, 1.0, width=32), min_size=1, max_size=700, unique=True), st.floats(0.1, 20.0))
@settings(max_examples=30, deadline=None)
def test_of_many_tokens_the_most_alike_are_kept(cosines: list[float], strength: float) -> None:
    words = WordTokens(tuple(f"w{n}" for n in range(len(cosines))), tuple((n,) for n in range(len(cosines))))
    bias = penalties(words, [near(list(range(len(cosines))), cosines)], strength, "")
    kept = sorted(cosines, reverse=True)[:MOST_TOKENS]
    assert sorted(bias.values()) == pytest.approx([-strength * cosine for cosine in kept])
