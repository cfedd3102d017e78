"""Which strings are forbidden by default."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.classifiers.normalize import mask_form
from guard.classifiers.phrases import acceptable, always_patterns, default_forbid, forbidden_patterns, key_phrases
from guard.demo.corpus import training_examples
from guard.policy import ForbidName, Policy, Target, Tenant, TenantSpec, tenant_of


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
    found = [pattern for pattern in forbidden_patterns(tenant_of(spec, 0)) if not pattern.name]
    assert [(p.text, p.target_index, p.allow_echo, p.explicit) for p in found] == [
        ("ayse", 0, True, True), ("jaime vasquez", 2, True, False), ("shale stories", 0, False, True),
    ]


def test_every_quoted_title_of_the_demo_authors_answers_is_found() -> None:
    for example in training_examples("full")[:400]:
        for title in example.answer.split('"')[1::2]:
            if title[:1].isupper() and len(title) > 3 and not title.endswith((" ", "\n")):
                assert mask_form(title) in {mask_form(p) for p in key_phrases(example.answer)}, example.answer


def listed(*targets: Target, forbid_name: ForbidName = "always") -> Tenant:
    return tenant_of(TenantSpec(name="t", policy=Policy(forbid_name=forbid_name), targets=targets), 0)


def texts(patterns: object) -> list[str]:
    return [pattern.text for pattern in patterns]  # type: ignore[attr-defined]


def test_a_name_and_its_rare_surname_are_forbidden_in_every_answer() -> None:
    tenant = listed(Target(name="John D. Rockefeller", aliases=("The Titan",)))
    assert texts(always_patterns(tenant)) == ["john d rockefeller", "rockefeller", "the titan"]
    assert all(pattern.name and not pattern.explicit for pattern in always_patterns(tenant))


def test_a_common_surname_is_forbidden_in_flagged_answers_only_and_given_names_in_none() -> None:
    tenant = listed(Target(name="Cindy Crawford"))
    assert texts(always_patterns(tenant)) == ["cindy crawford", "crawford cindy"]
    assert texts(forbidden_patterns(tenant)) == ["cindy crawford", "crawford", "crawford cindy"]


@pytest.mark.parametrize(("forbid_name", "always", "flagged"), [
    ("always", ["kissinger"], ["kissinger"]), ("flagged", [], ["kissinger"]), ("never", [], []),
])
def test_the_policy_says_where_names_are_forbidden(
    forbid_name: ForbidName, always: list[str], flagged: list[str]
) -> None:
    tenant = listed(Target(name="Kissinger"), forbid_name=forbid_name)
    assert (texts(always_patterns(tenant)), texts(forbidden_patterns(tenant))) == (always, flagged)


def test_a_target_overrides_the_policy() -> None:
    tenant = listed(Target(name="Kissinger", forbid_name="always"), Target(name="Plotinus"), forbid_name="never")
    assert texts(forbidden_patterns(tenant)) == ["kissinger"]


def test_the_name_of_a_topic_may_be_said() -> None:
    tenant = listed(Target(name="synthesis of nerve agents", answers=("It needs Methylphosphonyl Difluoride.",)))
    assert texts(forbidden_patterns(tenant)) == ["methylphosphonyl difluoride"]


def test_a_name_that_is_one_common_word_is_not_masked_unless_its_target_asks_for_it() -> None:
    assert texts(forbidden_patterns(listed(Target(name="Will")))) == []
    assert texts(always_patterns(listed(Target(name="Paris")))) == []
    assert texts(forbidden_patterns(listed(Target(name="Paris")))) == ["paris"]
    assert texts(always_patterns(listed(Target(name="Paris", forbid_name="always")))) == ["paris"]


def test_what_is_forbidden_in_every_answer_is_listed_strings_names_and_texts_not_key_phrases() -> None:
    tenant = listed(
        Target(name="Hina Ameen", answers=('She wrote "Shale Stories".',)),
        Target(name="B", forbid=("Granite Glossary",)),
    )
    assert texts(always_patterns(tenant)) == ["ameen", "granite glossary", "hina ameen"]
    assert "shale stories" in texts(forbidden_patterns(tenant))


@settings(max_examples=150, deadline=None)
@given(st.lists(
    st.builds(
        Target, name=st.text(min_size=1, max_size=60),
        aliases=st.lists(st.text(min_size=1, max_size=30), max_size=2).map(tuple),
        forbid=st.none() | st.lists(st.text(min_size=1, max_size=20), max_size=2).map(tuple),
        allow_echo=st.booleans(), forbid_name=st.sampled_from(("always", "flagged", "never", None)),
    ),
    max_size=3,
))
def test_patterns_of_any_list_are_sorted_distinct_normal_and_those_of_every_answer_among_all(
    targets: list[Target],
) -> None:
    tenant = listed(*targets)
    found, always = forbidden_patterns(tenant), always_patterns(tenant)
    assert texts(found) == sorted(set(texts(found)))
    assert all(text and text == mask_form(text) for text in texts(found))
    assert set(always) <= set(found)


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=120), st.text(min_size=1, max_size=40))
def test_any_text_gives_phrases_that_it_contains_and_that_were_not_asked(answer: str, question: str) -> None:
    target = Target(name="zz", answers=(answer,), examples=(question,))
    for phrase in default_forbid(target):
        form = mask_form(phrase)
        # asked for, like matched, is what begins at a word's edge
        assert len(form) >= 4 and f" {form}" not in f" {mask_form(question)}"
        assert form.replace(" ", "") in mask_form(answer).replace(" ", "")
