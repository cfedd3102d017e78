"""The output matcher: releases early, never too early."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.classifiers.normalize import mask_form
from guard.classifiers.trie import build_trie
from guard.errors import ConfigurationError
from guard.stream import OutputMatcher, PatternSet

LETTERS = st.sampled_from(list("aab -é\u200bA\ufb01\n.f"))
TEXTS = st.lists(LETTERS, max_size=24).map("".join)
PATTERNS = st.lists(st.text("aab f", min_size=1, max_size=6), min_size=1, max_size=5).map(
    lambda found: tuple(sorted({mask_form(p) for p in found} - {""}))
)


CUTS = st.lists(st.integers(0, 24), max_size=6)
EXEMPT = st.frozensets(st.integers(0, 4))


def matcher_of(
    patterns: tuple[str, ...], exempt: frozenset[int] = frozenset(), seed: str = ""
) -> OutputMatcher:
    return OutputMatcher(PatternSet.compile(patterns), exempt, seed)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[low:high] for low, high in zip(edges, edges[1:], strict=False)]


def contains(text: str, pattern: str) -> bool:
    return f" {pattern}" in f" {mask_form(text)}"


@settings(max_examples=600, deadline=None)
@given(TEXTS, PATTERNS, EXEMPT, CUTS)
def test_any_cut_releases_only_clean_text_and_finds_what_is_there(
    text: str, patterns: tuple[str, ...], exempt: frozenset[int], cuts: list[int]
) -> None:
    forbidden = [p for n, p in enumerate(patterns) if n not in exempt]
    matcher, released, fed, hit = matcher_of(patterns, exempt), "", "", False
    for piece in pieces_of(text, cuts):
        result = matcher.feed(piece)
        released, fed = released + result.text, fed + piece
        hit = result.hit
        assert released + matcher.held == fed
        assert hit == any(contains(fed, p) for p in forbidden)
        assert not any(contains(released, p) for p in forbidden)
    if not hit:
        assert released + matcher.flush().text == text


@settings(max_examples=300, deadline=None)
@given(TEXTS, PATTERNS)
def test_what_was_released_before_a_match_is_the_text_before_it(text: str, patterns: tuple[str, ...]) -> None:
    matcher, released = matcher_of(patterns), ""
    for character in text:
        released += matcher.feed(character).text
    if matcher.hit:
        # the forbidden string can be found in the held text alone, so no letter of it was sent
        assert any(contains(matcher.held, p) for p in patterns)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, PATTERNS)
def test_a_match_may_begin_in_the_seed_but_lies_not_wholly_in_it(
    seed: str, text: str, patterns: tuple[str, ...]
) -> None:
    if any(contains(seed, p) for p in patterns):
        return
    matcher = matcher_of(patterns, seed=seed)
    result = matcher.feed(text)
    assert result.hit == any(contains(seed + text, p) for p in patterns)
    assert result.text + matcher.held == text


@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS, PATTERNS, EXEMPT, CUTS, st.lists(st.booleans(), min_size=7, max_size=7), TEXTS)
def test_a_fork_goes_on_like_a_matcher_that_read_everything(
    seed: str, text: str, patterns: tuple[str, ...], exempt: frozenset[int], cuts: list[int], forks: list[bool],
    other: str,
) -> None:
    straight = matcher_of(patterns, exempt, seed)
    whole = straight.feed(text)
    matcher, released = matcher_of(patterns, exempt, seed), ""
    for piece, forked in zip(pieces_of(text, cuts), forks, strict=False):
        if forked:
            left, matcher = matcher, matcher.fork()
            # neither hears of what the other reads
            left.feed(other)
            left.flush()
            matcher.fork().feed(other)
        released += matcher.feed(piece).text
    assert (released, matcher.held, matcher.hit) == (whole.text, straight.held, whole.hit)
    assert matcher.flush() == straight.flush()


@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS, TEXTS, PATTERNS, EXEMPT)
def test_going_back_makes_seed_of_what_was_read_before(
    before: str, dropped: str, after: str, patterns: tuple[str, ...], exempt: frozenset[int]
) -> None:
    matcher, fresh = matcher_of(patterns, exempt), matcher_of(patterns, exempt, before)
    if matcher.feed(before).hit:
        return
    place = matcher.place
    matcher.feed(dropped)
    matcher.go_back(place)
    assert matcher.held == ""
    for character in after:
        assert matcher.feed(character) == fresh.feed(character)
    assert matcher.held == fresh.held


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, PATTERNS)
def test_the_end_of_a_seed_is_read_like_the_whole(start: str, end: str, patterns: tuple[str, ...]) -> None:
    reader = matcher_of(patterns, frozenset(range(len(patterns))))
    reader.feed(start + end)
    assert matcher_of(patterns, seed=start + end).place == reader.place


@pytest.mark.parametrize("seed", ["he may", "so he may"])
def test_a_forbidden_string_in_the_seed_hides_no_longer_one_that_begins_there(seed: str) -> None:
    matcher = matcher_of(("may", "he may be"), seed=seed)
    assert [matcher.feed(character).text for character in " be"] == ["", "", ""]
    assert matcher.hit


def test_patterns_are_numbered_in_sorted_order() -> None:
    patterns = PatternSet.compile(["jaime", "hina ameen", "", "jaime"])
    assert patterns.patterns == ("hina ameen", "jaime")
    assert not OutputMatcher(patterns, frozenset({1})).feed("Jaime").hit
    assert OutputMatcher(patterns, frozenset({0})).feed("Jaime").hit


def test_a_trie_that_was_built_elsewhere_is_used_as_it_is() -> None:
    trie, _ = build_trie(("hina ameen", "jaime"))
    patterns = PatternSet(("hina ameen", "jaime"), trie)
    assert patterns.trie is trie and OutputMatcher(patterns).feed("Jaime").hit
    with pytest.raises(ConfigurationError, match="other strings"):
        PatternSet(("jaime",), trie)


def test_nothing_is_held_that_cannot_become_a_match() -> None:
    matcher = matcher_of(("hina ameen",))
    assert matcher.feed("I met ").text == "I met "
    assert matcher.feed("Hina").text == ""
    assert matcher.feed(" Kumar and").text == "Hina Kumar and"
    assert matcher.feed(" Hina  Ame").text == " "
    assert matcher.held == "Hina  Ame"
    assert matcher.flush().text == "Hina  Ame"


def test_an_exempt_string_is_not_held() -> None:
    matcher = matcher_of(("hina ameen", "jaime"), frozenset({0}))
    assert matcher.feed("Hina Amee").text == "Hina Amee"
    assert not matcher.feed("n is Jai").hit
    assert matcher.feed("me").hit
    assert matcher.held == "Jaime"


def test_after_a_hit_nothing_is_released() -> None:
    matcher = matcher_of(("jaime",))
    first = matcher.feed("He is J\u200ba\u0301IME Vasquez")
    assert (first.text, first.hit) == ("He is ", True)
    assert matcher.feed(" more").text == "" and matcher.flush().text == ""
    assert matcher.held == "J\u200ba\u0301IME Vasquez more"


def test_without_patterns_everything_is_released() -> None:
    assert matcher_of(()).feed("anything at all").text == "anything at all"
