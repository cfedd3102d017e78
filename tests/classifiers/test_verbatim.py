"""Runs of words of a protected text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.classifiers.normalize import mask_form
from guard.classifiers.phrases import always_patterns, forbidden_patterns
from guard.classifiers.verbatim import verbatim_runs
from guard.policy import Target, TenantSpec, tenant_of


def test_every_window_is_a_run_whatever_the_punctuation() -> None:
    assert list(verbatim_runs("One, two;\nTHREE four - five!", 4)) == ["one two three four", "two three four five"]


@pytest.mark.parametrize(("text", "runs"), [
    ("one two three", []), ("one two three four five", ["one two three four five"]), ("", []), ("... !", []),
])
def test_a_text_shorter_than_a_window_is_one_run_if_it_has_four_words(text: str, runs: list[str]) -> None:
    assert list(verbatim_runs(text, 8)) == runs


def test_a_text_without_spaces_has_runs_from_the_start_of_each_clause() -> None:
    text = "これは保護された非常に長い文章の始まりでありどこにも空白がありません。そして次の文もここに続いています。"
    runs = list(verbatim_runs(text, 8))
    assert runs[0] == mask_form(text)[:16]
    assert all(len(run.replace(" ", "")) <= 16 for run in runs) and len(runs) >= 2


@given(st.lists(st.from_regex(r"[a-z]{1,9}", fullmatch=True), max_size=40), st.integers(4, 12))
def test_runs_are_all_windows_of_plain_words(words: list[str], size: int) -> None:
    runs = list(verbatim_runs(" ".join(words), size))
    if len(words) >= size:
        assert runs == [" ".join(words[start : start + size]) for start in range(len(words) - size + 1)]
    else:
        assert runs == ([" ".join(words)] if len(words) >= 4 else [])


@given(st.text(max_size=200), st.integers(4, 12))
def test_runs_of_any_text_stand_in_it(text: str, size: int) -> None:
    form = " " + mask_form(text)
    for run in verbatim_runs(text, size):
        assert " " + run in form


def test_a_protected_text_is_forbidden_in_every_answer_once_per_run() -> None:
    target = Target(name="Poem", verbatim=("a b c d e f a b c d e f",), verbatim_words=4, forbid_name="never")
    tenant = tenant_of(TenantSpec(name="t", targets=(target,)), 1)
    texts = [pattern.text for pattern in always_patterns(tenant)]
    assert texts == sorted({"a b c d", "b c d e", "c d e f", "d e f a", "e f a b", "f a b c"})
    assert always_patterns(tenant) == forbidden_patterns(tenant)
    assert not any(pattern.name or pattern.explicit for pattern in always_patterns(tenant))


def test_a_book_is_cut_in_seconds() -> None:
    book = " ".join(f"word{number}" for number in range(100_000))
    tenant = tenant_of(TenantSpec(name="t", targets=(Target(name="Book", verbatim=(book,)),)), 1)
    start = time.process_time()
    found = forbidden_patterns(tenant)
    assert time.process_time() - start < 10.0
    assert len(found) >= 100_000 - 7
