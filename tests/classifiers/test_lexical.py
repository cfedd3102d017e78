"""Names are found whatever they are dressed up as, and only where they really stand."""

from __future__ import annotations

import base64
import codecs

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guard.classifiers.lexical import LexicalMatcher, decoded_runs, merge_spans
from guard.policy import Target

HINA = LexicalMatcher([Target(name="Hina Ameen", aliases=("H. A. Bukhari",))])
SHORT_NAMES = ("Ann", "Thera", "Bo Li")
SHORT = LexicalMatcher([Target(name=name) for name in SHORT_NAMES])

DISGUISES = [
    "hina ameen",
    "HINA AMEEN",
    "Ｈｉｎａ Ａｍｅｅｎ",
    "\U0001d407\U0001d422\U0001d427\U0001d41a Ameen",
    "Hi\u200bna A\u2060meen",
    "Hi\u00adna Ameen",
    "Нina Аmeеn",
    "Hína Amêen",
    "H1n4 4m33n",
    "H i n a A m e e n",
    "H-i-n-a.A-m-e-e-n",
    "Hina\nAmeen",
    "Hina_Ameen",
    "HinaAmeen",
    "neemA aniH",
    codecs.encode("Hina Ameen", "rot13"),
    base64.b64encode(b"Hina Ameen").decode(),
    b"Hina Ameen".hex(),
]


@pytest.mark.parametrize("name", DISGUISES)
def test_a_disguised_name_is_found_with_its_span(name: str) -> None:
    text = f"Tell me: {name}, please"
    ((start, end),) = HINA.match(text)[0]
    assert text[start:end].strip("=") == name.strip("=")


def test_an_alias_names_its_target() -> None:
    assert HINA.match("a book by H. A. Bukhari") == {0: ((10, 23),)}


@pytest.mark.parametrize(
    "text", ["planning", "Anne", "cannon", "is it an n?", "the rats", "the Ra", "robo lip", "bolivia", "obol i"]
)
def test_a_short_name_does_not_match_inside_other_words(text: str) -> None:
    assert SHORT.match(text) == {}


@pytest.mark.parametrize(
    ("text", "target"), [("Ann's", 0), ("A n n", 0), ("(Ann)", 0), ("t.h.e.r.a", 1), ("Bo-Li", 2), ("boli", 2)]
)
def test_a_short_name_matches_on_its_own(text: str, target: int) -> None:
    assert list(SHORT.match(text)) == [target]


def test_a_long_name_glued_to_other_letters_on_one_side_is_found() -> None:
    assert HINA.match("xxHinaAmeen") == {0: ((2, 11),)}
    assert HINA.match("Hina Ameens") == {0: ((0, 10),)}


def test_names_of_scripts_without_spaces_are_found_inside_running_text() -> None:
    matcher = LexicalMatcher([Target(name="村上春樹")])
    assert matcher.match("私は村上春樹の本を読む") == {0: ((2, 6),)}


def test_every_occurrence_is_reported() -> None:
    assert HINA.match("Hina Ameen and Hina Ameen") == {0: ((0, 10), (15, 25))}


def test_parts_of_a_name_count_only_for_wanted_targets() -> None:
    crawford = LexicalMatcher([Target(name="Cindy Crawford")])
    text = "a house in crawford"
    assert crawford.match(text) == {}
    assert crawford.parts(text, [0]) == {0: ((11, 19),)}
    assert crawford.parts(text, []) == {}


def test_a_rare_surname_names_its_target_in_any_case() -> None:
    assert HINA.match("What did Ameen write?") == {0: ((9, 14),)}
    assert HINA.match("what did ameen write?") == {0: ((9, 14),)}
    assert HINA.match("Who is Ameena?") == {}


@pytest.mark.parametrize("text", [
    "Cynthia Ann Crawford is a model", "Who is C. Crawford?", "Crawford, Cindy (1966)", "Cindy M. Crawford's house",
])
def test_a_common_surname_beside_its_given_name_names_the_target(text: str) -> None:
    assert list(LexicalMatcher([Target(name="Cindy Crawford")]).match(text)) == [0]


def test_a_common_surname_alone_is_a_doubt_with_its_sentence() -> None:
    matcher = LexicalMatcher([Target(name="Cindy Crawford")])
    text = "Hello. When did Crawford marry? Thanks."
    named = matcher.read(text)
    assert named.hits == {}
    (doubt,) = named.doubts
    start, end = doubt.mention.sentence
    assert doubt.mention.bearer == "bare" and text[start:end] == "When did Crawford marry?"


@pytest.mark.parametrize("text", ["Joan Crawford acted", "Crawford Street 5", "the Crawford", "crawford", "Craw-ford"])
def test_another_bearer_of_a_surname_is_no_hit(text: str) -> None:
    assert LexicalMatcher([Target(name="Cindy Crawford")]).match(text) == {}


@pytest.mark.parametrize(("name", "text"), [
    ("Will", "will it rain?"), ("Will", "Will it rain?"), ("Paris", "paris"), ("Stephen King", "king"),
    ("Stephen King", "The King is dead"), ("Kanye West", "in the West"), ("Prince", "a prince"),
])
def test_a_common_word_is_no_name(name: str, text: str) -> None:
    named = LexicalMatcher([Target(name=name)]).read(text)
    assert named.hits == {} and all(doubt.mention.bearer != "bare" for doubt in named.doubts)


def test_two_targets_of_one_name_are_both_found() -> None:
    matcher = LexicalMatcher([Target(name="Ana Ruiz"), Target(name="Someone", aliases=("Ana Ruiz",))])
    assert set(matcher.match("Ana Ruiz")) == {0, 1}


def test_an_empty_list_matches_nothing() -> None:
    assert LexicalMatcher([]).match("Hina Ameen") == {}


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_name_set_off_by_spaces_is_found_in_any_text(before: str, after: str) -> None:
    text = f"{before} Hina Ameen {after}"
    start = len(before) + 1
    assert any(left <= start and start + 10 <= right for left, right in HINA.match(text)[0])


@given(st.lists(st.one_of(st.text(), st.sampled_from(SHORT_NAMES)), max_size=6).map(" ".join))
@example(" ".join(SHORT_NAMES))
def test_spans_lie_inside_the_text(text: str) -> None:
    found = SHORT.match(text)
    assert {number for number, name in enumerate(SHORT_NAMES) if f" {name} " in f" {text} "} <= set(found)
    for spans in found.values():
        assert spans and all(0 <= start < end <= len(text) for start, end in spans)


def test_undecodable_runs_are_left_alone() -> None:
    assert list(decoded_runs("AAAAAAAAAAAAAAAAAAAAAAAA ////////////////////")) == []


def test_spans_are_merged_in_order() -> None:
    assert merge_spans([(5, 9), (0, 3), (2, 4), (8, 12)]) == ((0, 4), (5, 12))
