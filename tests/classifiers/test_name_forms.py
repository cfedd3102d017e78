"""The forms of a name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.classifiers.name_forms import name_forms
from guard.classifiers.normalize import mask_form
from guard.classifiers.person_names import split_person
from guard.policy import Kind, Target


def forms(name: str, kind: Kind | None = None, aliases: tuple[str, ...] = ()) -> tuple[set[str], set[str], set[str]]:
    found = name_forms(Target(name=name, kind=kind, aliases=aliases))
    return set(found.certain), set(found.distinctive), set(found.weak)


def test_a_person_has_full_names_initials_and_a_rare_surname() -> None:
    certain, distinctive, weak = forms("John D. Rockefeller")
    assert certain == {
        "John D. Rockefeller", "John Rockefeller", "J. D. Rockefeller", "JD Rockefeller", "Rockefeller, John D.",
        "Rockefeller, John",
    }
    assert (distinctive, weak) == ({"Rockefeller"}, {"John"})


@pytest.mark.parametrize(("name", "certain"), [
    ("Robert Downey Jr.", "Robert Downey"), ("Rockefeller, John D.", "John Rockefeller"),
    ("Dr. Martin Luther King Jr.", "Martin King"), ("Prince Harry, Duke of Sussex", "Duke of Sussex"),
    ('Dwayne "The Rock" Johnson', "Dwayne Johnson"), ("Queen Elizabeth II", "Elizabeth II"),
    ("Xi Jinping", "Jinping Xi"), ("Hsiao Yun-Hwa", "Yun-Hwa Hsiao"),
])
def test_a_name_is_also_known_without_what_stands_around_it(name: str, certain: str) -> None:
    assert certain in forms(name)[0]


@pytest.mark.parametrize(("name", "distinctive"), [
    ("Vincent van Gogh", {"van Gogh"}), ("Leonardo da Vinci", {"da Vinci"}), ("Osama bin Laden", {"bin Laden"}),
    ("Daniel Day-Lewis", {"Day-Lewis"}), ("Aysha Al-Hashim", {"Aysha", "Al-Hashim"}), ("Xi Jinping", {"Jinping"}),
    ("Cindy Crawford", set()), ("Stephen King", set()), ("Vanna White", {"Vanna"}),
])
def test_rare_parts_are_distinctive_with_their_particles(name: str, distinctive: set[str]) -> None:
    assert forms(name)[1] == distinctive


@pytest.mark.parametrize("name", ["村上春樹", "Владимир Путин", "50 Cent", "Madonnna", "محمد علي", "Jay-Z"])
def test_names_that_cannot_be_split_stay_whole(name: str) -> None:
    assert split_person(name) is None
    assert forms(name) == ({name}, set(), set())


def test_initials_that_are_a_common_word_are_not_written_together() -> None:
    certain, _, _ = forms("Anna Nicole Smith")
    assert "A. N. Smith" in certain and "AN Smith" not in certain


def test_a_title_is_known_without_article_and_subtitle() -> None:
    assert forms("The Lord of the Rings")[0] == {"The Lord of the Rings", "Lord of the Rings"}
    assert "Harry Potter" in forms("Harry Potter: The Complete Series")[0]


def test_an_organisation_is_known_without_its_suffix_and_weakly_by_its_initials() -> None:
    certain, _, weak = forms("International Business Machines Corp.")
    assert certain == {"International Business Machines Corp.", "International Business Machines"} and weak == {"IBM"}


@pytest.mark.parametrize("kind", ["place", "text", "fact", "topic"])
def test_other_kinds_are_known_by_name_and_aliases_only(kind: Kind) -> None:
    assert forms("Anna Karenina Station", kind, ("The Stop",)) == ({"Anna Karenina Station", "The Stop"}, set(), set())


@pytest.mark.parametrize("name", ["Will", "Paris", "King", "Prince", "Apple"])
def test_a_name_that_is_one_common_word_is_weak(name: str) -> None:
    assert forms(name) == (set(), set(), {name})


def test_an_alias_that_looks_like_a_person_has_forms_and_another_has_not() -> None:
    certain, distinctive, _ = forms("Marshall Mathers", aliases=("Slim Q. Shadyyy", "King of Rhymes"))
    assert {"Slim Shadyyy", "King of Rhymes"} <= certain and "Shadyyy" in distinctive
    assert "Rhymes" not in distinctive


@settings(max_examples=300, deadline=None)
@given(st.one_of(
    st.text(min_size=1, max_size=60),
    st.lists(st.sampled_from("John D. de la van Ludwig O'Neal Jr. , -Z von Kim Il Prince ' 李".split()), min_size=1)
    .map(" ".join).filter(lambda text: len(text) < 4000),
))
def test_forms_of_any_name_are_distinct_and_hold_the_name(name: str) -> None:
    found = name_forms(Target(name=name))
    texts = [mask_form(form.text) for form in found.forms]
    assert len(set(texts)) == len(texts) and all(texts)
    assert not mask_form(name) or mask_form(name) in texts
    for form in found.forms:
        if form.part != "whole":
            assert sum(map(str.isalpha, mask_form(form.text))) >= 3
