"""The output matcher: releases early, never too early."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from guard.classifiers.normalize import mask_form
from guard.stream import OutputMatcher

LETTERS = st.sampled_from(list("aab -é\u200bA\ufb01\n.f"))
TEXTS = st.lists(LETTERS, max_size=24).map("".join)
PATTERNS = st.lists(st.text("aab f", min_size=1, max_size=6), min_size=1, max_size=5).map(
    lambda found: tuple(sorted({mask_form(p) for p in found} - {""}))
)


def contains(text: str, pattern: str) -> bool:
    return f" {pattern}" in f" {mask_form(text)}"


@settings(max_examples=600, deadline=None)
@given(TEXTS, PATTERNS, st.sets(st.integers(0, 4)), st.lists(st.integers(0, 24), max_size=6))
def test_any_cut_releases_only_clean_text_and_finds_what_is_there(
    text: str, patterns: tuple[str, ...], exempt_numbers: set[int], cuts: list[int]
) -> None:
    exempt = frozenset(n for n in exempt_numbers if n < len(patterns))
    forbidden = [p for n, p in enumerate(patterns) if n not in exempt]
    matcher, released, fed, hit = OutputMatcher(patterns, exempt), "", "", False
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for low, high in zip(edges, edges[1:], strict=False):
        result = matcher.feed(text[low:high])
        released, fed = released + result.text, fed + text[low:high]
        hit = result.hit
        assert released + matcher.held == fed
        assert hit == any(contains(fed, p) for p in forbidden)
        assert not any(contains(released, p) for p in forbidden)
    if not hit:
        assert released + matcher.flush().text == text


@settings(max_examples=300, deadline=None)
@given(TEXTS, PATTERNS)
def test_what_was_released_before_a_match_is_the_text_before_it(text: str, patterns: tuple[str, ...]) -> None:
    matcher, released = OutputMatcher(patterns), ""
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
    matcher = OutputMatcher(patterns, seed=seed)
    result = matcher.feed(text)
    assert result.hit == any(contains(seed + text, p) for p in patterns)
    assert result.text + matcher.held == text


def test_nothing_is_held_that_cannot_become_a_match() -> None:
    matcher = OutputMatcher(("hina ameen",))
    assert matcher.feed("I met ").text == "I met "
    assert matcher.feed("Hina").text == ""
    assert matcher.feed(" Kumar and").text == "Hina Kumar and"
    assert matcher.feed(" Hina  Ame").text == " "
    assert matcher.held == "Hina  Ame"
    assert matcher.flush().text == "Hina  Ame"


def test_an_exempt_string_is_not_held() -> None:
    matcher = OutputMatcher(("hina ameen", "jaime"), frozenset({0}))
    assert matcher.feed("Hina Amee").text == "Hina Amee"
    assert not matcher.feed("n is Jai").hit
    assert matcher.feed("me").hit
    assert matcher.held == "Jaime"


def test_after_a_hit_nothing_is_released() -> None:
    matcher = OutputMatcher(("jaime",))
    first = matcher.feed("He is J\u200ba\u0301IME Vasquez")
    assert (first.text, first.hit) == ("He is ", True)
    assert matcher.feed(" more").text == "" and matcher.flush().text == ""
    assert matcher.held == "J\u200ba\u0301IME Vasquez more"


def test_without_patterns_everything_is_released() -> None:
    assert OutputMatcher(()).feed("anything at all").text == "anything at all"
