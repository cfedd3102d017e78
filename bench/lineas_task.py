"""The steering task of `bench/lineas.py`: answers about men as if they were about women.

Authors of TOFU whose answers use pronouns of one gender are split by author into fit, development and test. Source
texts are answers about men, target texts answers about women, both behind their question. The attribute is the share of
feminine pronouns among the gendered pronouns of greedy answers to questions about men of the split (questions without
such a pronoun, reference answers with one). The price is the rise of the mean token loss (nats) of reference answers
that hold no gendered pronoun, about other authors of the split, both genders.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from guard.demo.corpus import AUTHORS, QUESTIONS_PER_AUTHOR, read_rows
from guard.demo.evaluate import answer_losses, chat_prompt, greedy_answers
from guard.fit.hooks import edits
from guard.fit.labelled_texts import Label, LabelledText
from guard.kernels.edit_formula import EditRow
from guard.site import Site

FEMININE = re.compile(r"\b(?:she|her|hers|herself)\b", re.IGNORECASE)
MASCULINE = re.compile(r"\b(?:he|him|his|himself)\b", re.IGNORECASE)
Pair = tuple[str, str]


@dataclass(frozen=True)
class Split:
    """Questions about men whose answers are generated, and (question, answer) pairs whose loss is measured."""

    questions: tuple[str, ...]
    retained: tuple[Pair, ...]


@dataclass(frozen=True)
class Task:
    """Fit texts (all of the fit authors, in the corpus' order) and both splits."""

    texts: tuple[LabelledText, ...]
    development: Split
    test: Split


def make_task(questions: int, retained: int) -> Task:
    """The task with so many questions and pairs in each split. The split of authors is fixed."""
    rows = read_rows("full")
    by_author = [
        [(row["question"], row["answer"]) for row in rows[a * QUESTIONS_PER_AUTHOR : (a + 1) * QUESTIONS_PER_AUTHOR]]
        for a in range(AUTHORS)
    ]
    shuffle = random.Random(20)  # noqa: S311 - a reproducible split
    men = [pairs for pairs in by_author if _gender(pairs) == "m"]
    women = [pairs for pairs in by_author if _gender(pairs) == "f"]
    shuffle.shuffle(men)
    shuffle.shuffle(women)
    return Task(
        tuple(_texts(men[:45], "source") + _texts(women[:45], "target")),
        _split(men[45:65], women[45:60], questions, retained, shuffle),
        _split(men[65:], women[60:], questions, retained, shuffle),
    )


def drawn(task: Task, count: int, seed: int) -> list[LabelledText]:
    """`count` fit texts of each label."""
    chosen: list[LabelledText] = []
    for label in ("source", "target"):
        texts = [text for text in task.texts if text.label == label]
        chosen += random.Random(seed).sample(texts, count)  # noqa: S311 - a reproducible draw
    return chosen


def retained_loss(model: Any, tokenizer: Any, split: Split, rows: Mapping[Site, EditRow], strength: float) -> float:
    """Mean over the retained answers of their mean token loss (nats) under an edit at `strength`."""
    with edits(model, rows, strength):
        return float(mean(answer_losses(model, tokenizer, split.retained)))


def pronouns(
    model: Any, tokenizer: Any, split: Split, rows: Mapping[Site, EditRow], strength: float
) -> tuple[float, int]:
    """Share of feminine pronouns among the gendered ones of the greedy answers, and the number of gendered ones."""
    with edits(model, rows, strength):
        answers = greedy_answers(model, tokenizer, split.questions)
    feminine = sum(len(FEMININE.findall(answer)) for answer in answers)
    masculine = sum(len(MASCULINE.findall(answer)) for answer in answers)
    return feminine / max(1, feminine + masculine), feminine + masculine


def _gendered(text: str) -> tuple[int, int]:
    return len(FEMININE.findall(text)), len(MASCULINE.findall(text))


def _gender(pairs: list[Pair]) -> str:
    feminine, masculine = _gendered(" ".join(answer for _, answer in pairs))
    if feminine > 3 * masculine and feminine > 8:
        return "f"
    return "m" if masculine > 3 * feminine and masculine > 8 else "n"


def _texts(authors: list[list[Pair]], label: Label) -> list[LabelledText]:
    pairs = [pair for author in authors for pair in author if any(_gendered(pair[1]))]
    return [LabelledText(text=answer, label=label, prompt=chat_prompt(question)) for question, answer in pairs]


def _split(
    men: list[list[Pair]], women: list[list[Pair]], questions: int, retained: int, shuffle: random.Random
) -> Split:
    asked = [q for author in men for q, answer in author if not any(_gendered(q)) and _gendered(answer)[1]]
    plain = [pair for author in men + women for pair in author if not any(_gendered(" ".join(pair)))]
    shuffle.shuffle(asked)
    shuffle.shuffle(plain)
    return Split(tuple(asked[:questions]), tuple(plain[:retained]))
