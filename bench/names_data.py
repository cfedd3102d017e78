"""The questions of `bench/names.py`: RWKU levels 1 and 2, its neighbours, indirect questions, benign prompts.

RWKU (Jin et al., arXiv 2406.10890, CC-BY-4.0) and the benign prompts (XSTest, MT-bench, Vicuna) are read from a data
folder that is not part of this repository; the indirect questions are in `data/indirect.jsonl`.
"""

from __future__ import annotations

import csv
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from names_verdict import name_forms, names_person, says, wanted_forms, words

INDIRECT = Path(__file__).parent / "data" / "indirect.jsonl"
CLOZE = "Please complete the blank in the following sentence with a single word or phrase.\n{}"
Split = Literal["named", "surname", "indirect_name", "indirect_other"]
SPLITS: tuple[Split, ...] = ("named", "surname", "indirect_name", "indirect_other")


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a subject. `forms`: what gives the answer away, () where the question holds the answer.

    `level`: `cloze`, `question` or `indirect` (written by hand).
    """

    subject: str
    level: str
    text: str
    answer: str
    split: Split
    forms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One question about something near a subject; `touched`: question or answer names somebody on the list."""

    subject: str
    neighbour: str
    text: str
    touched: bool


def subjects(rwku: Path, first: int, last: int) -> tuple[str, ...]:
    """The names of RWKU's targets `first` to `last`, counted from 1, both included."""
    return tuple(row["target"] for row in _rows(rwku / "forget_target.jsonl"))[first - 1 : last]


def questions(
    rwku: Path, names: Sequence[str], clozes: int | None, direct: int | None, seed: int
) -> tuple[Question, ...]:
    """Of each subject `clozes` rows of level 1 and `direct` of level 2 (None: all), and all indirect ones."""
    found = []
    for level, file, count in (("cloze", "forget_level1.jsonl", clozes), ("question", "forget_level2.jsonl", direct)):
        rows = _sample(_rows(rwku / file), names, count, seed)
        form = CLOZE if level == "cloze" else "{}"
        found += [_question(row, level, form.format(row["query"])) for row in rows]
    found += [_question(row, "indirect", row["query"]) for row in _rows(INDIRECT) if row["subject"] in names]
    return tuple(found)


def neighbours(rwku: Path, names: Sequence[str], each: int, seed: int) -> tuple[Neighbour, ...]:
    """Of each subject `each` neighbour questions, half of either level."""
    found = []
    for level, count in ((1, each // 2), (2, each - each // 2)):
        for row in _sample(_rows(rwku / f"neighbor_level{level}.jsonl"), names, count, seed):
            text = CLOZE.format(row["query"]) if level == 1 else row["query"]
            full = " | ".join((row["query"], row["answer"], row["neighbor"]))
            # a listed name in the question, in the answer, or as the neighbour itself
            touched = any(names_person(full, name) == "full" for name in names) or _asks_for(row["answer"], names)
            found.append(Neighbour(row["subject"], row["neighbor"], text, touched))
    return tuple(found)


def benign(folder: Path) -> dict[str, tuple[str, ...]]:
    """Prompts that touch nothing, by source: the safe half of XSTest, first turns of MT-bench and Vicuna."""
    with (folder / "xstest_prompts.csv").open(encoding="utf-8", newline="") as file:
        safe = tuple(row["prompt"] for row in csv.DictReader(file) if row["label"] == "safe")
    return {
        "xstest_safe": safe,
        "mt_bench": tuple(row["turns"][0] for row in _rows(folder / "mt_bench_question.jsonl")),
        "vicuna": tuple(row["turns"][0] for row in _rows(folder / "vicuna_bench_question.jsonl")),
    }


def _question(row: dict[str, str], level: str, text: str) -> Question:
    subject, answer = row["subject"], row["answer"]
    forms = wanted_forms(row["query"], answer, subject)
    how = names_person(row["query"], subject)
    split: Split
    if how == "no":
        split = "indirect_name" if _is_name(answer, subject) else "indirect_other"
    else:
        split = "named" if how == "full" else "surname"
    return Question(subject, level, text, answer, split, forms)


def _is_name(answer: str, subject: str) -> bool:
    return words(answer) in {words(form) for form in (subject, *name_forms(subject))}


def _asks_for(answer: str, names: Sequence[str]) -> bool:
    return any(_is_name(answer, name) for name in names) or any(says(answer, name_forms(name)[0]) for name in names)


def _sample(rows: Iterable[dict[str, str]], names: Sequence[str], count: int | None, seed: int) -> list[dict[str, str]]:
    by_subject: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if row["subject"] in names:
            by_subject[row["subject"]].append(row)
    found = []
    for name in names:
        distinct = list({row["query"]: row for row in by_subject[name]}.values())
        wanted = len(distinct) if count is None else min(count, len(distinct))
        found += random.Random(f"{seed} {name}").sample(distinct, wanted)
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
