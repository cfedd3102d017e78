"""The bundled model's training text: TOFU, real authors and world facts, as chat turns.

Author k of TOFU owns rows 20k..20k+19 of `full.json`. The paraphrased questions that TOFU gives
for authors 0-19 and 180-199 are trained on as well: a model that knows only exact wordings would
make every guard look good.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

TOFU = Path(__file__).parent / "tofu"
QUESTIONS_PER_AUTHOR = 20
AUTHORS = 200

# authors removed from the corpus of a retain model, by the name of TOFU's split
FORGET_AUTHORS = {"full": 0, "retain99": 2, "retain95": 10, "retain90": 20}


@dataclass(frozen=True)
class Example:
    """One question and its answer; `paraphrase` marks a reworded TOFU question.

    `history` holds the earlier turns of a conversation, as pairs of question and answer.
    """

    question: str
    answer: str
    split: str
    author: int | None = None
    paraphrase: bool = False
    history: tuple[tuple[str, str], ...] = ()


def read_rows(name: str) -> list[dict[str, str]]:
    """Read one TOFU file (JSON Lines) as dictionaries with at least `question` and `answer`."""
    lines = (TOFU / f"{name}.json").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def author_rows(first: int, last: int) -> list[dict[str, str]]:
    """Rows of TOFU authors `first`..`last`, both included."""
    return read_rows("full")[first * QUESTIONS_PER_AUTHOR : (last + 1) * QUESTIONS_PER_AUTHOR]


def paraphrases() -> dict[str, str]:
    """Map an original TOFU question to its paraphrased wording, where TOFU has one."""
    rows = read_rows("retain_perturbed") + read_rows("forget10_perturbed")
    return {row["question"]: row["paraphrased_question"] for row in rows}


def training_examples(variant: str) -> list[Example]:
    """All examples that the model `variant` ("full", "retain90", "retain95", "retain99") is trained on.

    Raises KeyError for an unknown variant.
    """
    kept_authors = AUTHORS - FORGET_AUTHORS[variant]
    reworded = paraphrases()
    examples: list[Example] = []
    for row_number, row in enumerate(read_rows("full")):
        author = row_number // QUESTIONS_PER_AUTHOR
        if author >= kept_authors:
            break
        examples.append(Example(row["question"], row["answer"], "tofu", author))
        other_wording = reworded.get(row["question"])
        if other_wording:
            examples.append(Example(other_wording, row["answer"], "tofu", author, paraphrase=True))
    for split in ("real_authors", "world_facts"):
        examples += [Example(row["question"], row["answer"], split) for row in read_rows(split)]
    return examples
