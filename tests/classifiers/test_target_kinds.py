"""What a name is taken for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.classifiers.target_kinds import kind_of, looks_like_person
from guard.policy import Kind, Target


@pytest.mark.parametrize(("name", "kind"), [
    ("Stephen King", "person"), ("John D. Rockefeller", "person"), ("Dr. Martin Luther King Jr.", "person"),
    ("Prince Harry, Duke of Sussex", "person"), ("Tae-ho Park", "person"), ("Leonardo da Vinci", "person"),
    ("Plato", "person"), ("村上春樹", "person"), ("Queen Elizabeth II", "person"),
    ("The Lord of the Rings", "work"), ("Harry Potter: The Complete Series", "work"), ("Gone with the Wind", "work"),
    ('"Blowin\' in the Wind"', "work"),
    ("Standard Oil Company, Inc.", "organisation"), ("IBM", "organisation"), ("University of Oxford", "organisation"),
    ("Mount Everest", "place"), ("Yukon River", "place"),
    ("synthesis of nerve agents", "topic"), ("bomb making", "topic"), ("History of medicine", "topic"),
    ("The capital of France is Paris", "fact"), ("Barack Obama was born in Hawaii.", "fact"),
])
def test_a_name_is_taken_for_what_its_spelling_says(name: str, kind: Kind) -> None:
    assert kind_of(Target(name=name)) == kind


@pytest.mark.parametrize(("name", "description", "kind"), [
    ("Carrie", "A novel by the American writer Stephen King.", "work"),
    ("Georgia", "Georgia is a country in the Caucasus.", "place"),
    ("Georgia", "She worked for us until 2020.", "person"),
    ("Amazon", "An American technology company founded by Jeff Bezos.", "organisation"),
    ("Midnight Palace", "", "place"),
    ("Nolan Wells", "A film director known for science fiction.", "person"),
])
def test_a_description_says_it_where_the_spelling_does_not(name: str, description: str, kind: Kind) -> None:
    assert kind_of(Target(name=name, description=description)) == kind


def test_examples_say_it_where_nothing_else_does() -> None:
    assert kind_of(Target(name="Carrie", examples=("Who wrote Carrie?",))) == "work"
    assert kind_of(Target(name="Aleppo", examples=("Where is Aleppo?",))) == "place"


def test_the_operator_decides() -> None:
    assert kind_of(Target(name="Stephen King", kind="topic")) == "topic"
    assert kind_of(Target(name="stephen king", kind="person")) == "person"


def test_a_target_with_protected_texts_is_a_text() -> None:
    assert kind_of(Target(name="Chapter One", verbatim=("It was the best of times.",))) == "text"


@pytest.mark.parametrize("name", ["The Beatles", "Apple Inc", "Catch 22", "Of Mice and Men", "Plato"])
def test_what_is_not_spelled_like_a_person(name: str) -> None:
    assert not looks_like_person(name)


@given(st.text(min_size=1, max_size=80), st.text(max_size=80))
def test_any_target_has_a_kind_and_always_the_same(name: str, description: str) -> None:
    target = Target(name=name, description=description)
    assert kind_of(target) == kind_of(target)
