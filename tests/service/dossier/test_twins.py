"""Made-up names: like their kind, different from each other, the same every time, and never the target's words."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.classifiers.normalize import mask_form
from guard.classifiers.target_kinds import kind_of
from guard.policy import Kind, Target
from guard.service.dossier.twins import FRAMED, twins

KINDS: tuple[Kind, ...] = get_args(Kind)


@given(st.text(min_size=1, max_size=60), st.sampled_from(KINDS))
@settings(max_examples=60)
def test_twins_are_distinct_repeatable_and_not_the_name(name: str, kind: Kind) -> None:
    made = twins(name, kind, 4)
    assert made == twins(name, kind, 4)
    assert len({*made, name}) == 5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FRAMED])
def test_twins_of_names_do_not_depend_on_the_name(kind: Kind) -> None:
    assert twins("Genghis Khan", kind, 5) == twins("Standard Oil", kind, 5)


def test_twins_of_people_look_like_people() -> None:
    assert {kind_of(Target(name=name)) for name in twins("x", "person", 20)} == {"person"}


def test_a_topic_keeps_its_frame() -> None:
    for twin in twins("synthesis of nerve agents", "topic", 3):
        words = mask_form(twin).split()
        assert words[1:3] == ["of", "nerve"] and "synthesis" not in words and "agents" not in words


def test_a_fact_keeps_its_small_words() -> None:
    for twin in twins("The merger of Acme and Globex in 2025", "fact", 3):
        assert twin.startswith("The merger of ") and twin.endswith(" in 2025")
        assert "Acme" not in twin and "Globex" not in twin
