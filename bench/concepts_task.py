"""The task of `bench/concepts.py`: one TOFU author is to be forgotten by the bundled model, the others are not.

A fit gets the texts of the author's questions and answers against those of FIT_RETAIN. Measured is the ROUGE-L recall
of greedy answers, as in guard/demo/evaluate.py: to the author's questions in the wording of the data and reworded, and
to questions about authors of another split that no fit has seen.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from guard.demo.corpus import TOFU, author_rows, paraphrases
from guard.demo.evaluate import chat_prompt, greedy_answers, rouge_recall
from guard.fit.concept_rows import ConceptRow, ConceptTexts, rows_digest, split_texts
from guard.fit.concept_states import ConceptStates, collect_concept_states, token_states
from guard.fit.hooks import edits
from guard.kernels.edit_formula import EditRow
from guard.site import Site

MODEL = TOFU.parent / "model"
DEVELOPMENT = (3, 9, 14)
# the retain90 model never saw these; five of them are drawn by the seed
HELD_OUT = range(180, 200)
FIT_RETAIN, DEVELOPMENT_OTHERS, HELD_OUT_OTHERS = range(20, 80), range(80, 140), range(140, 180)
SITES = (Site(4, "resid_post"), Site(5, "resid_post"), Site(6, "resid_post"))
Row = dict[str, str]
Rows = Mapping[Site, EditRow]


@dataclass(frozen=True, slots=True)
class Author:
    """One author's questions and the states that its packs are fitted on."""

    number: int
    rows: list[Row]
    digest: str
    texts: ConceptTexts
    states: dict[Site, ConceptStates]


@dataclass(slots=True)
class Bench:
    """The model and what is asked of it."""

    model: Any
    tokenizer: Any
    fingerprint: str
    reworded: dict[str, str] = field(default_factory=paraphrases)
    clean: dict[str, float] = field(default_factory=dict)
    retain: dict[Site, ConceptStates] = field(default_factory=dict)

    def recalls(self, rows: Sequence[Row], wording: str = "question", edit: Rows | None = None) -> list[float]:
        """Recall of every row's answer under an edit."""
        with edits(self.model, edit or {}):
            answers = greedy_answers(self.model, self.tokenizer, [row[wording] for row in rows])
        return [rouge_recall(row["answer"], answer) for row, answer in zip(rows, answers, strict=True)]

    def loss(self, name: str, rows: Sequence[Row], edit: Rows, wording: str = "question") -> dict[str, float]:
        """Mean recall before and after an edit, and the share that is lost."""
        if name not in self.clean:
            self.clean[name] = fmean(self.recalls(rows, wording))
        before, after = self.clean[name], fmean(self.recalls(rows, wording, edit))
        return {"before": round(before, 4), "after": round(after, 4), "loss": round(1.0 - after / before, 4)}

    def author(self, number: int, retain: Sequence[str]) -> Author:
        """The states of an author against those of the retain texts."""
        rows = author_rows(number, number)
        for row in rows:
            row["paraphrased"] = self.reworded.get(row["question"], row["question"])
        concept = [ConceptRow(text=text(row), label="forget") for row in rows]
        concept += [ConceptRow(text=line, label="retain") for line in retain]
        texts = split_texts(concept, 0.0, 0)
        if not self.retain:
            options: dict[str, Any] = {"max_length": 256, "show_progress": False}
            self.retain = collect_concept_states(self.model, self.tokenizer, texts, SITES, **options)
        forget, lengths = token_states(self.model, self.tokenizer, texts.forget, SITES, max_length=256)
        states = {site: replace(found, forget=forget[site], forget_lengths=lengths)
                  for site, found in self.retain.items()}
        return Author(number, rows, rows_digest(concept), texts, states)

    def origin(self, author: Author) -> dict[str, Any]:
        """What a pack's header says about model and data."""
        return {"fingerprint": self.fingerprint, "digest": author.digest, "licence": "MIT"}


def text(row: Row) -> str:
    """A question and its answer as the model sees them."""
    return f"{chat_prompt(row['question'])}{row['answer']}<|end|>"


def sample(authors: range, per_author: int, seed: int) -> list[Row]:
    """Some questions of each author."""
    draw = random.Random(seed)
    return [row for number in authors for row in draw.sample(author_rows(number, number), per_author)]


def never_learned(authors: Sequence[int]) -> float:
    """Mean recall that a model has for these authors when it never saw them (records of the retain90 model)."""
    lines = (TOFU.parent / "records" / "retain90.jsonl").read_text(encoding="utf-8").splitlines()
    recalls = {row["question"]: row["recall"] for row in map(json.loads, lines)}
    questions = [row["question"] for number in authors for row in author_rows(number, number)]
    return round(fmean(recalls[question] for question in questions), 4)
