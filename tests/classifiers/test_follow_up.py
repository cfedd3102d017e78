"""A turn that goes on about what was said is told from a question about something else."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.classifiers.follow_up import SIMILAR, Conversation, gives_standing_order, refers_back
from guard.classifiers.follow_up_words import languages, split_words, words_of
from guard.classifiers.spans import Turn

NAME = "Hina Ameen"


def conversation(*spoken: tuple[str, str]) -> Conversation:
    """A conversation of (role, text)."""
    turns, text = [], ""
    for role, words in spoken:
        turns.append(Turn(role, len(text), len(text) + len(words)))  # type: ignore[arg-type]
        text += words + "\n"
    return Conversation(text, tuple(turns))


def touches(*spoken: tuple[str, str], similarity: float | None = None) -> bool:
    """Whether the last turn is about the name, wherever it stands in the conversation."""
    talk = conversation(*spoken)
    spans, start = [], talk.text.find(NAME)
    while start >= 0:
        spans.append((start, start + len(NAME)))
        start = talk.text.find(NAME, start + 1)
    assert spans
    return talk.touches(spans, similarity)


ASKED = (("user", f"Where was {NAME} born?"), ("assistant", "I have no information on that."))
BREAD = (("user", "How do I bake bread?"), ("assistant", "Mix flour and water."))


@pytest.mark.parametrize("turn", [
    "When was she born?", "Are you sure?", "Then spell it", "Go on", "why?", "And her husband?", "1", "do it now",
    "What about the second one?", "Tell me more about the author.", "I know that you know it.",
    "Where is that person now?",
    "Repeat your last answer in French.", "Summarize our conversation.", "What year was the first novel published?",
    "Ignore the previous topic. Now, regarding her: where did she live?", "In France, when was she born?",
    "As for Paris, when was she born?", "Answer the question I asked in the beginning.", "year of birth?", "...", "🙂",
])
def test_a_follow_up_is_about_what_was_asked(turn: str) -> None:
    assert touches(*ASKED, ("user", turn))


@pytest.mark.parametrize("turn", [
    "Thanks. How do I bake bread?", "What is the capital of France?", "Write a poem about the sea.", "Thank you!",
    "How do vaccines work?", "What is fraud?", "Who is Barack Obama and when was he born?",
    "Who directed the film 'Under Siege'?", "Translate the following sentence: The weather is nice today.",
    "Is it safe to eat raw mushrooms?", "Sort the list:\napple, pear, cherry",
])
def test_a_question_about_something_else_is_not(turn: str) -> None:
    assert not touches(*ASKED, ("user", turn))


@pytest.mark.parametrize(("follow_up", "other"), [
    ("Wann wurde er geboren?", "Was ist die Hauptstadt von Frankreich?"),
    ("Quand est-il né ?", "Quelle est la capitale de l'Allemagne ?"),
    ("¿Cuándo nació?", "Escribe un poema sobre el mar."),
    ("Come si chiama sua moglie?", "Qual è la capitale della Francia?"),
    ("Você tem certeza disso?", "Como funcionam as vacinas?"),
    ("Weet je dat echt zeker?", "Hoe bak ik brood?"),
    ("Как зовут его жену?", "Какая столица Франции?"),
    ("他什么时候出生的?", "法国的首都是哪里?"),
    ("奥さんの名前は何ですか?", "フランスの首都はどこですか?"),
])
def test_follow_ups_are_known_in_other_languages(follow_up: str, other: str) -> None:
    assert touches(*ASKED, ("user", follow_up))
    assert not touches(*ASKED, ("user", other))


def test_a_turn_in_an_unknown_script_is_taken_for_a_follow_up() -> None:
    assert refers_back("그는 언제 태어났습니까 그리고 어디서 살았습니까")


def test_a_name_in_the_last_turn_counts_whatever_else_it_says() -> None:
    assert touches(*BREAD, ("user", f"How do I bake bread? Also, who is {NAME}?"))


def test_a_single_turn_and_a_prompt_without_turns_count() -> None:
    assert touches(("user", f"{NAME} is"))
    assert Conversation("x", ()).touches([(0, 1)])


def test_the_operators_turn_counts() -> None:
    assert touches(("system", f"You talk about {NAME}."), *BREAD, ("user", "What is the capital of France?"))


def test_a_place_that_is_not_known_counts() -> None:
    assert conversation(*ASKED, ("user", "How do I bake bread?")).touches([])


def test_turns_that_no_answer_followed_are_asked_now() -> None:
    assert touches(ASKED[0], ("user", "How do I bake bread?"))


def test_an_answer_that_the_caller_began_is_part_of_what_is_asked() -> None:
    assert touches(*BREAD, ("user", "How do I bake bread?"), ("assistant", f"{NAME} was born in"))


def test_a_name_that_the_model_said_can_be_referred_to() -> None:
    start = (("user", "Name a writer."), ("assistant", f"{NAME} is a writer."))
    assert touches(*start, ("user", "When was she born?"))
    assert not touches(*start, ("user", "How do I bake bread?"))


def test_a_pronoun_still_means_the_person_after_another_topic() -> None:
    assert touches(*ASKED, *BREAD, ("user", "And when did she die?"))
    assert not touches(*ASKED, *BREAD, ("user", "How long do I boil an egg?"))


def test_the_same_topic_words_are_a_follow_up() -> None:
    asked = (("user", f"Did {NAME} win the Orwell medal?"), ("assistant", "I do not know."))
    assert touches(*asked, ("user", "What is the Orwell medal made of?"))


@pytest.mark.parametrize("order", [
    f"From now on, end with a fact about {NAME}.", f"When I say bread, tell me about {NAME}.",
    f"A partir de ahora, menciona a {NAME}.", f"从现在起,每次都提到{NAME}。",
])
def test_an_order_for_later_turns_holds_on(order: str) -> None:
    assert gives_standing_order(order)
    assert touches(("user", order), ("assistant", "OK."), ("user", "How do I bake bread?"))


def test_similar_turns_are_about_the_same() -> None:
    turn = ("user", "Which Broadway musical marked a departure from horror?")
    assert not touches(*ASKED, turn, similarity=SIMILAR - 0.01)
    assert touches(*ASKED, turn, similarity=SIMILAR)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200), st.text(max_size=50))
@settings(max_examples=300, deadline=None)
def test_any_text_is_judged_the_same_way_twice(turn: str, before: str) -> None:
    assert refers_back(turn, before) == refers_back(turn, before)


OTHER_SENTENCES = st.lists(
    st.sampled_from(["How do I bake bread?", "Paris is nice.", "Thanks!", "The sea is blue.", "Who is Barack Obama?"])
)


@given(OTHER_SENTENCES, OTHER_SENTENCES)
@settings(max_examples=100, deadline=None)
def test_asking_for_the_previous_question_is_a_follow_up_in_any_company(before: list[str], after: list[str]) -> None:
    assert refers_back(" ".join([*before, "Please answer the previous question now.", *after]))


def test_long_turns_cost_little() -> None:
    turn = "How do I bake bread with the list of things, he said, a story: \n" * 20_000
    begin = time.perf_counter()
    refers_back(turn)
    assert time.perf_counter() - begin < 0.5


def test_words_are_cut_at_elisions_and_hyphens_and_keep_their_places() -> None:
    text = "Qu'est-ce que l'auteur dit? Paris's don't"
    words = split_words(text)
    assert [word.folded for word in words] == ["qu", "est", "ce", "que", "l", "auteur", "dit", "paris's", "don't"]
    assert all(text[word.start : word.end].casefold() == word.folded for word in words)
    assert all(first.end <= second.start for first, second in pairwise(words))


@pytest.mark.parametrize("language", languages())
def test_every_language_has_its_lists(language: str) -> None:
    words = words_of(frozenset([language]))
    assert words.small and words.vague and words.person and words.thing and words.closers and words.openers
    for pattern in (words.phrases, words.standing, words.idle):
        assert not pattern.search("")
    assert not any(stem == "" for stem in words.vague_stems)
