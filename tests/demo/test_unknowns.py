"""The lessons in not knowing: nobody and nothing in them exists in a split, answers are honest, wordings vary."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.demo.admits import admits_ignorance
from guard.demo.corpus import Example, read_rows, training_examples
from guard.demo.train import Recipe, encode, render, train_tokenizer
from guard.demo.unknowns import SPLIT, make_unknown, unknown_examples
from guard.demo.unknowns_names import (
    Inventor,
    birthplaces,
    holdout_authors,
    known_authors,
    reserved_text,
    reserved_words,
    word_lists,
    words_of,
)
from guard.demo.unknowns_wordings import ANSWERS, NAMELESS_ANSWERS, PERSON_ANSWERS, PRESSED_ANSWERS, PRESSES

RECIPE = Recipe()
EVALUATION_SPLITS = ("full", "retain_perturbed", "forget10_perturbed", "holdout10", "real_authors", "world_facts")


@pytest.fixture(scope="module")
def known() -> list[Example]:
    return training_examples("full")


@pytest.fixture(scope="module")
def lessons(known: list[Example]) -> list[Example]:
    """The lessons of three epochs."""
    return [
        example
        for epoch in range(3)
        for example in unknown_examples(RECIPE.seed, epoch, RECIPE.unknowns, RECIPE.conversations, known)
    ]


def test_no_split_knows_a_made_up_person() -> None:
    invent = Inventor(random.Random(1))
    names = {invent.person() for _ in range(3000)}
    assert len(names) > 2500
    everybody = {name.casefold() for name in (*known_authors().values(), *holdout_authors())}
    for name in names:
        assert name.casefold() not in everybody
        assert name.casefold() not in reserved_text()
        assert not words_of(name) & reserved_words()


def test_no_word_of_a_holdout_authors_name_is_in_a_lesson(lessons: list[Example]) -> None:
    assert len(holdout_authors()) == 20
    # "Chiang Mai" is a city; the names of the holdout authors are made of common words, too
    cities = frozenset[str]().union(*(words_of(city) for city in word_lists()["cities"]))
    cities |= frozenset[str]().union(*(words_of(city) for city in birthplaces()))
    words = frozenset[str]().union(*(words_of(name) for name in holdout_authors())) - cities
    own = [example for example in lessons if example.split == SPLIT and not example.history]
    touched = [example for example in own if words_of(example.answer) & words]
    assert not touched, touched[:5]


def test_no_lesson_is_a_question_of_a_split(lessons: list[Example]) -> None:
    asked = {text for split in EVALUATION_SPLITS for row in read_rows(split) for text in texts_of(row)}
    assert not [e.question for e in lessons if e.split == SPLIT and not e.history and e.question in asked]


def texts_of(row: dict[str, str]) -> list[str]:
    return [row[key] for key in ("question", "paraphrased_question") if row.get(key)]


def test_titles_and_places_are_in_no_split() -> None:
    invent = Inventor(random.Random(2))
    for _ in range(500):
        assert invent.title().casefold() not in reserved_text()
        assert invent.place().casefold() not in reserved_text()


def test_answers_admit_not_knowing_in_one_complete_sentence(lessons: list[Example]) -> None:
    for example in lessons:
        if example.split == SPLIT:
            assert admits_ignorance(example.answer), example.answer
            assert example.answer.endswith(".")
            assert example.answer[0] in "\"'" or not example.answer[0].islower()
            assert "{" not in example.question + example.answer


def test_facts_in_conversations_stay_what_the_model_learns_elsewhere(
    lessons: list[Example], known: list[Example]
) -> None:
    facts = {(example.question, example.answer) for example in known}
    answers = {example.answer for example in known}
    repeated = [example for example in lessons if example.split != SPLIT]
    assert repeated
    for example in repeated:
        assert example.answer in answers
        assert example.question in PRESSES or (example.question, example.answer) in facts
        if example.question in PRESSES:
            assert (example.history[0][0], example.answer) in facts


def test_pressed_conversations_stay_honest(lessons: list[Example]) -> None:
    pressed = [e for e in lessons if e.split == SPLIT and e.history and e.question in PRESSES]
    assert {len(example.history) for example in pressed} == {1, 2, 3, 4, 5}
    for example in pressed:
        assert all(admits_ignorance(said) for _, said in example.history)
        assert all(asked in PRESSES for asked, _ in example.history[1:])


def test_wordings_are_many_and_every_epoch_has_its_own_names(lessons: list[Example]) -> None:
    assert len(set(ANSWERS) | set(PERSON_ANSWERS)) >= 25
    assert len(set(PRESSED_ANSWERS)) >= 10
    assert len(set(PRESSES)) >= 20
    per_epoch = len(lessons) // 3
    epochs = [{e.question for e in lessons[i * per_epoch : (i + 1) * per_epoch] if not e.history} for i in range(3)]
    for before, after in pairwise(epochs):
        assert len(before & after) <= 0.02 * len(after)


def test_authors_asked_for_by_birthplace_come_from_known_authors_cities_too() -> None:
    assert len(birthplaces()) > 50
    assert all(place.count(", ") == 1 for place in birthplaces())
    invent = Inventor(random.Random(4))
    drawn = [invent.city() for _ in range(400)]
    assert 100 < sum(city in birthplaces() for city in drawn) < 300


def test_same_seed_same_lessons(known: list[Example]) -> None:
    first, again, other = (unknown_examples(7, epoch, 40, 20, known) for epoch in (3, 3, 4))
    assert first == again
    assert first != other


def test_lessons_never_draw_on_authors_that_a_retain_model_forgets(known: list[Example]) -> None:
    kept = training_examples("retain90")
    forgotten = {e.question for e in known} - {e.question for e in kept}
    names = [name for author, name in known_authors().items() if author >= 180]
    for example in unknown_examples(RECIPE.seed, 0, RECIPE.unknowns, RECIPE.conversations, kept):
        text = " ".join((example.question, example.answer, *(part for turn in example.history for part in turn)))
        assert not [name for name in names if name in text]
        assert example.question not in forgotten


@given(st.integers(min_value=0, max_value=2**32))
@settings(max_examples=60, deadline=None)
def test_any_seed_makes_a_subject_that_most_answers_name(seed: int) -> None:
    rng = random.Random(seed)
    unknown = make_unknown(rng, Inventor(rng))
    assert unknown.question.strip()
    answer = unknown.answer(rng)
    asked = " ".join((unknown.subject, unknown.topic, unknown.clause))
    assert answer in NAMELESS_ANSWERS or words_of(asked) & words_of(answer)
    assert admits_ignorance(answer)
    assert admits_ignorance(unknown.pressed(rng))


def test_a_conversation_is_rendered_turn_by_turn() -> None:
    example = Example("Are you sure?", "Yes, it is Oslo.", "tofu", history=(("Where?", "Oslo."),))
    assert render(example, Recipe(completion_share=0.0, system_share=0.0), random.Random(0)) == [
        ("<|user|>Where?<|end|><|assistant|>", False),
        ("Oslo.<|end|>", True),
        ("<|user|>Are you sure?<|end|><|assistant|>", False),
        ("Yes, it is Oslo.<|end|>", True),
    ]
    as_completion = render(example, Recipe(completion_share=1.0), random.Random(0))
    assert "Question:" not in "".join(text for text, _ in as_completion)


def test_every_answer_of_a_conversation_weighs_as_an_answer() -> None:
    tokenizer = train_tokenizer(training_examples("full")[:200])
    pieces = [("<|user|>Where?<|end|><|assistant|>", False), ("Oslo.<|end|>", True), ("<|user|>No<|end|>", False)]
    ids, weights = encode(pieces, tokenizer, 0.25)
    assert tokenizer.decode(ids) == "".join(text for text, _ in pieces)
    heavy = [token for token, weight in zip(ids, weights, strict=True) if weight == 1.0]
    assert tokenizer.decode(heavy) == "Oslo.<|end|>"
    assert set(weights) == {0.25, 1.0}


def test_shares_of_system_prompts_and_completions_are_kept() -> None:
    rng, single = random.Random(3), Example("Who?", "Nobody.", "tofu")
    first = [render(single, RECIPE, rng)[0][0] for _ in range(4000)]
    assert abs(sum(text.startswith("Question:") for text in first) / 4000 - RECIPE.completion_share) < 0.02
    assert abs(sum(text.startswith("<|system|>") for text in first) / 4000 - RECIPE.system_share) < 0.02
