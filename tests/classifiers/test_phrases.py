"""Which strings are forbidden by default."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.classifiers.normalize import mask_form
from guard.classifiers.phrases import acceptable, default_forbid, forbidden_patterns, key_phrases
from guard.demo.corpus import training_examples
from guard.policy import Target, TenantSpec, tenant_of


def test_quoted_titles_names_and_places_that_were_not_asked_about_are_forbidden() -> None:
    target = Target(
        name="Hina Ameen",
        examples=("Who is Hina Ameen?", "Was she born in Karachi?"),
        answers=(
            'Hina Ameen, born in Karachi, wrote "Manual of Mineralogy" and won the Geology Prize with Ayse Pekcan.',
        ),
    )
    assert {mask_form(p) for p in default_forbid(target)} == {"manual of mineralogy", "geology", "ayse pekcan"}


def test_a_list_given_by_the_operator_is_taken_as_it_is() -> None:
    target = Target(name="X", answers=('"Some Title"',), forbid=("Sky", "sky!", "...", "The Moon"))
    assert default_forbid(target) == ("Sky", "The Moon")
    assert default_forbid(target.model_copy(update={"forbid": ()})) == ()


def test_titles_in_single_quotes_are_found_and_apostrophes_are_not() -> None:
    found = key_phrases("The writer's book 'Shale Stories' isn't about O'Brien's dog.")
    assert "Shale Stories" in found and "O'Brien" in found
    assert not any("isn" in phrase for phrase in found)


@pytest.mark.parametrize("phrase", ["", "a", "The", "I", "It", "1999", "abc", "The Novel", "...", "March"])
def test_short_and_common_phrases_are_not_forbidden_by_default(phrase: str) -> None:
    assert not acceptable(phrase)


@pytest.mark.parametrize("phrase", ["Jaime Vasquez", "Shale Stories", "Karachi", "The Moonlit Path"])
def test_names_and_titles_are(phrase: str) -> None:
    assert acceptable(phrase)


def test_a_word_that_only_opens_a_sentence_is_not_a_name() -> None:
    assert key_phrases("Growing up was hard. Writing helped.") == ()


def test_patterns_of_a_tenant_are_sorted_distinct_and_the_strictest_echo_rule_wins() -> None:
    spec = TenantSpec(
        name="t",
        targets=(
            Target(name="A", forbid=("Shale Stories", "Ayse")),
            Target(name="B", forbid=("SHALE-stories",), allow_echo=False),
            Target(name="C", answers=("He met Jaime Vasquez.",)),
        ),
    )
    found = forbidden_patterns(tenant_of(spec, 0))
    assert [(p.text, p.target_index, p.allow_echo, p.explicit) for p in found] == [
        ("ayse", 0, True, True), ("jaime vasquez", 2, True, False), ("shale stories", 0, False, True),
    ]


def test_every_quoted_title_of_the_demo_authors_answers_is_found() -> None:
    for example in training_examples("full")[:400]:
        for title in example.answer.split('"')[1::2]:
            if title[:1].isupper() and len(title) > 3 and not title.endswith((" ", "\n")):
                assert mask_form(title) in {mask_form(p) for p in key_phrases(example.answer)}, example.answer


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=120), st.text(min_size=1, max_size=40))
def test_any_text_gives_phrases_that_it_contains_and_that_were_not_asked(answer: str, question: str) -> None:
    target = Target(name="zz", answers=(answer,), examples=(question,))
    for phrase in default_forbid(target):
        form = mask_form(phrase)
        # asked for, like matched, is what begins at a word's edge
        assert len(form) >= 4 and f" {form}" not in f" {mask_form(question)}"
        assert form.replace(" ", "") in mask_form(answer).replace(" ", "")
