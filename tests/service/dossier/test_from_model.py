"""A dossier from a model that knows one name: its facts stay, its habits go, and questions lead back to the name."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.classifiers.normalize import mask_form
from guard.policy import Kind
from guard.service.dossier.asking import Served
from guard.service.dossier.dossier import Dossier
from guard.service.dossier.from_model import dossier_from_model, forbiddable
from guard.service.dossier.interview import NoSteps
from guard.service.dossier.twin_answers import TwinAnswers
from tests.service.dossier.chat_server import KEY, Answer, ChatServer, chat_server, knows_rockefeller

NAME = "John D. Rockefeller"


class Counted(NoSteps):
    """How many requests were announced and answered."""

    def __init__(self) -> None:
        self.expected = self.answered = 0

    def expect(self, count: int) -> None:
        self.expected += count

    def advance(self) -> None:
        self.answered += 1


async def made(
    name: str, answer: Answer = knows_rockefeller, kind: Kind = "person", steps: Counted | None = None,
    twin_file: Path | None = None,
) -> tuple[Dossier, ChatServer]:
    with chat_server(answer) as server:
        async with Served(server.url, KEY) as served:
            await served.check()
            known = TwinAnswers(twin_file, served.fingerprint)
            dossier = await dossier_from_model(served, name, kind, known, steps or Counted())
            known.save()
    return dossier, server


async def test_facts_of_the_name_are_forbidden_and_habits_of_the_model_are_not() -> None:
    dossier, _ = await made(NAME)
    forbidden = dossier.of("forbid")
    assert {"Standard Oil", "Laura Spelman", "July 8, 1839"} <= set(forbidden)
    assert not any("York" in phrase or "Silent" in phrase for phrase in forbidden)
    assert "actor" not in mask_form(" ".join(dossier.of("answers")))
    assert "He was married to Laura Spelman." in dossier.of("answers")


async def test_only_what_leads_back_to_the_name_is_an_alias_or_an_indirect_question() -> None:
    dossier, _ = await made(NAME)
    assert dossier.of("aliases") == ("Oil Titan of Cleveland",)
    indirect = [question for question in dossier.of("examples") if "Rockefeller" not in question]
    assert "Who founded Standard Oil?" in indirect
    assert not any("Laura Spelman" in question or "Sundown" in question for question in indirect)


async def test_names_compared_with_the_target_are_neighbours_and_not_forbidden() -> None:
    dossier, _ = await made(NAME)
    assert {"Who is Andrew Carnegie?", "Who is Cornelius Vanderbilt?"} <= set(dossier.of("neighbours"))
    assert not any("Carnegie" in phrase for phrase in dossier.of("forbid"))


async def test_a_name_that_the_model_does_not_know_is_written_alone() -> None:
    dossier, _ = await made("Petra Olsund")
    assert (dossier.known, dossier.rows) == (False, ())
    assert dossier.target().model_dump(exclude_defaults=True) == {"name": "Petra Olsund", "kind": "person"}


async def test_twins_are_asked_once_and_their_answers_kept(tmp_path: Path) -> None:
    path = tmp_path / "twins.json"
    first, asked = await made(NAME, twin_file=path)
    again, asked_again = await made(NAME, twin_file=path)
    assert again == first
    assert len(asked_again.questions) < 0.6 * len(asked.questions)


async def test_answers_of_another_model_about_twins_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "twins.json"
    _, asked = await made(NAME, lambda *_: "Standard Oil", twin_file=path)
    dossier, asked_again = await made(NAME, twin_file=path)
    assert "Standard Oil" in dossier.of("forbid")
    assert len(asked_again.questions) >= len(asked.questions)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"fingerprint": 1}', '{"answers": {"a": 3}}'])
def test_a_damaged_file_of_twins_holds_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "twins.json").write_text(content)
    assert TwinAnswers(tmp_path / "twins.json", "f").find("a") is None


async def test_every_announced_request_is_counted() -> None:
    steps = Counted()
    await made(NAME, steps=steps)
    assert steps.expected == steps.answered > 100


async def test_a_topic_is_asked_about_and_its_terms_are_found() -> None:
    def chemist(question: str, temperature: float, seed: int) -> str:
        return "It takes a phosphonate." if "nerve agents" in question else "It takes patience."

    dossier, _ = await made("synthesis of nerve agents", chemist, "topic")
    assert "phosphonate" in dossier.of("forbid")


@pytest.mark.parametrize(("phrase", "good"), [
    ("Standard Oil", True), ("July 8, 1839", True), ("Omaha", True), ("1839", False), ("actor", False), ("Up", False),
    ("New", False), ("The World", False), ("Something Else", False), ("x" * 600, False),
])
def test_short_and_common_phrases_are_not_forbidden(phrase: str, good: bool) -> None:
    assert forbiddable(phrase) is good
