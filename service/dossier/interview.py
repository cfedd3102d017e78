"""Asks the model about a name and about its twins, the same questions at the same temperatures."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from guard.policy import Kind
from guard.service.dossier.asking import Draw, Served
from guard.service.dossier.contrast import Answers
from guard.service.dossier.templates import TEMPLATES, Template, further
from guard.service.dossier.twin_answers import TwinAnswers
from guard.service.dossier.twins import twins

# questions whose answers say what a person does for a living
_TELLING = 3


class Steps(Protocol):
    """Who wants to know how far the questions are."""

    def expect(self, count: int) -> None:
        """`count` more requests will be sent."""

    def advance(self) -> None:
        """One of them is answered."""


class NoSteps:
    """Nobody does."""

    def expect(self, count: int) -> None:
        """Ignored."""

    def advance(self) -> None:
        """Ignored."""

Temperatures = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Depth:
    """Temperatures at which a question and its statement with a gap are asked. Lengths in tokens.

    A template without such a statement is asked as a question at the temperatures of both.
    """

    name: Temperatures = ((0.0, 0.7, 1.0), (0.0, 0.3, 0.7))
    twin: Temperatures = ((0.0, 0.7), (0.0, 0.3))
    twins: int = 3
    short: int = 24
    long: int = 48


DEPTH = Depth()


@dataclass(frozen=True, slots=True)
class Interview:
    """Answers to each template, about the name and about each twin. `templates` are those asked, by their text."""

    templates: Mapping[str, Template]
    about: Answers
    twins: Mapping[str, Answers]


async def interview(
    served: Served, name: str, kind: Kind, known: TwinAnswers, steps: Steps, depth: Depth = DEPTH
) -> Interview:
    """Ask the templates of `kind`, then those of a person's professions. Twins that `known` holds are not asked again.

    Raises ConfigurationError when the server fails.
    """
    first = TEMPLATES[kind]
    about = await _answers(served, name, first, depth, steps)
    said = " ".join(text for template in first[:_TELLING] for text in about[template.text])
    more = further(kind, said)
    about |= await _answers(served, name, more, depth, steps)
    asked = {template.text: template for template in (*first, *more)}
    made_up = twins(name, kind, depth.twins)
    fresh = [
        (twin, t) for twin in made_up for t in asked.values() if known.find(t.question(twin)) is None
    ]
    draws = [(t.question(twin), draw) for twin, t in fresh for draw in _draws(t, twin, depth.twin, depth)]
    for (question, _), text in zip(draws, await _ask(served, draws, steps), strict=True):
        known.add(question, text)
    return Interview(asked, about, {
        twin: {text: known.find(template.question(twin)) or () for text, template in asked.items()} for twin in made_up
    })


def _draws(template: Template, name: str, temperatures: Temperatures, depth: Depth) -> list[Draw]:
    question, gap = template.question(name), template.gap(name)
    prompts = [(question, each) for each in temperatures[0]] + [(gap or question, each) for each in temperatures[1]]
    tokens = depth.long if template.long else depth.short
    # draws of one question differ by their seeds, and so do questions
    seed = zlib.crc32(template.text.encode())
    return [
        Draw(prompt, temperature, tokens, seed + number) for number, (prompt, temperature) in enumerate(prompts)
    ]


async def _ask(served: Served, draws: Sequence[tuple[str, Draw]], steps: Steps) -> list[str]:
    steps.expect(len(draws))
    return await served.ask_all([draw for _, draw in draws], steps.advance)


async def _answers(
    served: Served, name: str, templates: Sequence[Template], depth: Depth, steps: Steps
) -> dict[str, list[str]]:
    draws = [(template.text, draw) for template in templates for draw in _draws(template, name, depth.name, depth)]
    texts: dict[str, list[str]] = {template.text: [] for template in templates}
    for (question, _), text in zip(draws, await _ask(served, draws, steps), strict=True):
        texts[question].append(text)
    return texts
