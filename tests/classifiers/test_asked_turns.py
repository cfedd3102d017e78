"""Which turns a question is judged by."""

from __future__ import annotations

from guard.classifiers.asked_turns import asked_turns
from guard.classifiers.chat_template import Role
from guard.classifiers.follow_up import Conversation
from guard.classifiers.spans import Turn

TOUCHED = (("user", "Who was John D. Rockefeller?"), ("assistant", "I have no information on him."))


def texts(*turns: tuple[Role, str]) -> list[str]:
    """Texts of the turns that the last of `turns` is judged by."""
    text, placed = "", []
    for role, words in turns:
        placed.append(Turn(role, len(text), len(text) + len(words)))
        text += words + "\n"
    return [text[start:end] for start, end in asked_turns(Conversation(text, tuple(placed)))]


def test_a_follow_up_is_judged_by_the_whole_conversation() -> None:
    turns: tuple[tuple[Role, str], ...] = (*TOUCHED, ("user", "When was he born?"))  # type: ignore[assignment]
    assert texts(*turns) == [words for _, words in turns]


def test_a_question_about_something_else_is_judged_by_itself_and_the_operators_turn() -> None:
    new = "What is the capital of France?"
    assert texts(("system", "Be brief."), *TOUCHED, ("user", new)) == ["Be brief.", new]  # type: ignore[arg-type]


def test_a_single_question_is_judged_by_itself() -> None:
    assert texts(("user", "Who was he?")) == ["Who was he?"]
