"""The shipped wordings of not knowing, and the check that refuses wordings which a list forbids."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.classifiers.language import language_of
from guard.classifiers.normalize import SEPARATOR, mask_form
from guard.classifiers.openings import bridges, contradictions, refusal_text, shipped_languages, shipped_openings
from guard.demo.admits import admits_ignorance

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "ru", "zh", "ja")


def test_ten_languages_are_shipped() -> None:
    assert shipped_languages() == LANGUAGES
    assert shipped_openings("xx") == ()
    assert bridges("xx") == bridges("en")
    assert refusal_text("xx") == refusal_text("en") == "I can't help with that."


@pytest.mark.parametrize("language", LANGUAGES)
def test_openings_leave_their_sentence_open(language: str) -> None:
    openings = shipped_openings(language)
    assert 8 <= len(openings) <= 20 and len({mask_form(one) for one in openings}) == len(openings)
    for opening in openings:
        assert opening == opening.strip() and opening[-1].isalpha()
        assert not set(opening) & set(".?!:;。？！")


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_opening_hides_another(language: str) -> None:
    # the engine lets go where the shorter one ends, so the longer one could never be taken
    openings = shipped_openings(language)
    hidden = [(one, other) for one in openings for other in openings if one != other and other.startswith(one)]
    assert hidden == []


def test_no_opening_says_yes_or_no() -> None:
    # the model would take the one that is true
    said = set("yes no ja nein oui non sí sì sim não nee да нет 是的 不 はい いいえ".split())
    openings = [opening for language in LANGUAGES for opening in shipped_openings(language)]
    assert [opening for opening in openings if re.split("[,，、]", opening)[0].casefold() in said] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_bridges_end_the_sentence_that_they_continue(language: str) -> None:
    texts = bridges(language)
    assert 5 <= len(texts) <= 8 and len(set(texts)) == len(texts)
    for text in texts:
        assert text[0] in "…—" and text[-1] in ".。"
        assert sum(text.count(end) for end in ".。?!？！") == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_in_its_language(language: str) -> None:
    texts = (*shipped_openings(language), *bridges(language), refusal_text(language))
    wrong = [text for text in texts if language_of(text, LANGUAGES) != language]
    assert len(wrong) <= 0.1 * len(texts), wrong


def test_what_an_english_opening_begins_admits_not_knowing() -> None:
    for opening in shipped_openings("en"):
        assert admits_ignorance(f"{opening} the founder of Standard Oil."), opening
    for bridge in bridges("en"):
        assert admits_ignorance(f"Standard Oil was founded by{bridge}"), bridge


def test_an_opening_with_a_forbidden_string_is_found() -> None:
    openings = ("I have no information on", "Ask Ada Example about", "I never heard of")
    assert contradictions(openings, [mask_form("Ada Example")]) == (openings[1],)
    assert contradictions(openings, [mask_form("INFORMATION on")]) == (openings[0],)
    # a match begins at the edge of a word and may end inside one
    assert contradictions(openings, ["nformation"]) == ()
    assert contradictions(openings, ["ex", "inform"]) == openings[:2]
    assert contradictions(openings, []) == () == contradictions([], ["ada"])


def test_shipped_openings_survive_an_ordinary_list() -> None:
    forbidden = [mask_form(name) for name in ("Stephen King", "John D. Rockefeller", "Информатик Иван", "孔子")]
    for language in LANGUAGES:
        assert contradictions(shipped_openings(language), forbidden) == ()


@given(st.lists(st.text(max_size=40), max_size=5), st.lists(st.text(min_size=1, max_size=8), max_size=5))
def test_contradictions_are_what_a_search_finds(openings: list[str], texts: list[str]) -> None:
    forbidden = [form for form in map(mask_form, texts) if form]
    expected = tuple(
        opening for opening in openings
        if any(SEPARATOR + form in SEPARATOR + mask_form(opening) for form in forbidden)
    )
    assert contradictions(openings, forbidden) == expected
