"""Asks the model the other way round: does a found fact lead back to the name?

A question that does not name the target and is answered with its name is the way by which a forgotten name comes back;
one that is not may be about anybody.
"""

from __future__ import annotations

from collections.abc import Sequence

from guard.classifiers.name_forms import name_forms
from guard.classifiers.normalize import SEPARATOR, mask_form
from guard.policy import Kind, Target
from guard.service.dossier.asking import Draw, Served
from guard.service.dossier.interview import Steps

TEMPERATURES = (0.0, 0.7, 0.7)
TOKENS = 28


async def answered_with(
    served: Served, name: str, kind: Kind, questions: Sequence[str], steps: Steps
) -> frozenset[str]:
    """Those of `questions` that at least one of three answers replies to with the name or a distinctive part of it.

    What the question itself says does not count. Raises ConfigurationError when the server fails.
    """
    forms = name_forms(Target(name=name, kind=kind))
    texts = [_padded(text) for text in (*forms.certain, *forms.distinctive)]
    draws = [
        Draw(question, temperature, TOKENS, seed)
        for question in questions
        for seed, temperature in enumerate(TEMPERATURES)
    ]
    steps.expect(len(draws))
    answers = await served.ask_all(draws, steps.advance)
    return frozenset(
        draw.question for draw, answer in zip(draws, answers, strict=True)
        if any(text in _padded(answer) and text not in _padded(draw.question) for text in texts)
    )


def _padded(text: str) -> str:
    return f"{SEPARATOR}{mask_form(text)}{SEPARATOR}"
