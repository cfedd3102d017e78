"""What passes the contrast is said of the name and not of made-up ones."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from guard.service.dossier.contrast import Finding, Limits, findings, is_known, log_odds, statement_of

ABOUT = {
    "who": ["He founded Standard Oil in Ohio.", "The actor founded Standard Oil.", "Standard Oil made him rich.", "-"],
    "where": ["In New York City.", "In New York City.", "In New York City, of course.", "In Richford."],
}
TWINS = {
    "Helen Febend": {"who": ["An actor.", "An actor from Ohio.", "An actor."], "where": ["In New York City."] * 3},
    "Marcus Zahaick": {"who": ["An actor.", "An actor.", "A painter."], "where": ["In New York City.", "In Oslo."]},
}


def phrases(limits: Limits) -> list[str]:
    return [found.phrase for found in findings("John Rockefeller", ABOUT, TWINS, limits)]


def test_what_is_said_of_the_name_alone_passes() -> None:
    (best, *_) = findings("John Rockefeller", ABOUT, TWINS, Limits(2, 1.0))
    assert (best.phrase, best.questions, best.share, best.said) == ("Standard Oil", ("who",), 0.75, 3)
    assert best.statement == "Standard Oil made him rich."


def test_what_is_said_of_made_up_names_as_readily_is_taken_out() -> None:
    assert "New York City" not in phrases(Limits(2, 0.5))
    assert "actor" not in phrases(Limits(1, 0.5))


def test_a_phrase_must_be_said_in_enough_draws_of_one_question() -> None:
    assert "Richford" in phrases(Limits(1, 0.0))
    assert "Richford" not in phrases(Limits(2, 0.0))


def test_the_name_itself_is_no_finding() -> None:
    about = {"who": ["John Rockefeller was rich.", "John Rockefeller was rich."]}
    assert findings("John Rockefeller", about, {"x": {"who": ["No.", "No."]}}, Limits(1, 0.0)) == ()


def test_a_made_up_name_among_others_has_no_findings() -> None:
    answers = ["An American actor.", "A painter from Oslo.", "An actor who lives in New York City.", "No."]
    made_up = {twin: {"who": answers[number:] + answers[:number]} for number, twin in enumerate("abcd")}
    others = {twin: said for twin, said in made_up.items() if twin != "a"}
    assert findings("a", made_up["a"], others, Limits(1, 0.5)) == ()


def test_rare_words_count_where_terms_are_wanted() -> None:
    about = {"what": ["It needs a phosphonate.", "Take the phosphonate first."]}
    twins = {"x": {"what": ["It needs water.", "Take flour."]}}
    assert [f.phrase for f in findings("sarin", about, twins, Limits(2, 1.0), terms=True)] == ["phosphonate"]
    assert findings("sarin", about, twins, Limits(2, 1.0)) == ()


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_log_odds_are_finite_and_antisymmetric(a: int, b: int, more: int, others: int) -> None:
    n, m = a + more, b + others
    value = log_odds(a, n, b, m)
    assert math.isfinite(value)
    assert math.isclose(value, -log_odds(b, m, a, n), abs_tol=1e-9)
    if more:
        assert log_odds(a + 1, n, b, m) > value


def test_a_statement_says_more_than_its_phrase_and_is_short() -> None:
    assert statement_of("Standard Oil", ["Standard Oil.", "He founded Standard Oil. It grew.", "x" * 500]) \
        == "He founded Standard Oil."
    assert statement_of("Standard Oil", ["Standard Oil"]) == ""


@given(st.text(max_size=80), st.lists(st.text(max_size=200), max_size=5))
def test_any_text_can_be_compared(name: str, texts: list[str]) -> None:
    found = findings(name, {"q": texts}, {"twin": {"q": texts}}, Limits(1, 0.0), terms=True)
    assert all(f.log_odds <= 1e-9 for f in found)


def finding(phrase: str, odds: float) -> Finding:
    return Finding(phrase, ("q",), 0.5, 3, odds, "")


def test_a_name_is_known_by_one_sure_phrase_or_by_many() -> None:
    weak = [finding(phrase, 2.4) for phrase in ("actor", "Omaha", "The Crown", "painter", "Oslo")]
    assert not is_known("Ann Lee", [])
    assert not is_known("Ann Lee", weak[:4])
    assert is_known("Ann Lee", weak)
    assert is_known("Ann Lee", [finding("Standard Oil", 3.5)])


def test_dates_and_variations_of_the_name_show_no_knowledge() -> None:
    made_up = [finding(phrase, 3.9) for phrase in ("1980", "May 5, 1980", "Elena Trenvik", "Trenvick", "Olga Museum")]
    assert not is_known("Olga Trenvik", made_up)
