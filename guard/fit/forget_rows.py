"""The data of a fit: forget questions with answers, and the score of a model that never saw them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from guard.errors import ConfigurationError

Metric = Literal["log_probability", "rouge"]
# names of the fields of a retain model's records that hold v_r
_RECORD_FIELDS: dict[str, tuple[str, float]] = {"log_probability": ("nll", -1.0), "rouge": ("recall", 1.0)}


class ForgetRow(BaseModel):
    """One line of the fit data (JSON Lines)."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    question: str
    answer: str
    paraphrase: str | None = None
    spans: tuple[tuple[int, int], ...] = ()
    terms: tuple[str, ...] = ()


def read_forget_rows(path: Path) -> list[ForgetRow]:
    """Read the fit data. Raises ConfigurationError that names the line; never shows its text."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if isinstance(record, dict) and "paraphrased_question" in record:
                record.setdefault("paraphrase", record["paraphrased_question"])
            rows.append(ForgetRow.model_validate(record))
        except (ValidationError, ValueError) as exc:
            raise ConfigurationError(f"{path.name}:{number}: needs `question` and `answer` (strings)") from exc
    if len(rows) < 2:
        raise ConfigurationError(f"{path.name}: a fit needs at least 2 questions, got {len(rows)}")
    return rows


def retain_value(records: Path, metric: Metric, split: str | None = None) -> float:
    """v_r: the mean score in the per-question records (JSON Lines) of a model that never saw the forget data."""
    field, sign = _RECORD_FIELDS[metric]
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = [sign * float(line[field]) for line in lines if field in line and split in (None, line.get("split"))]
    if not found:
        raise ConfigurationError(f"{records.name}: no record has the field {field}; give the target value instead")
    return fmean(found)


def rouge_recall(reference: str, answer: str) -> float:
    """ROUGE-L recall of `answer` against `reference` (stemmed), in [0, 1]."""
    return float(_scorer().score(reference, answer)["rougeL"].recall)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415 - imports nltk, only this metric needs it

    return RougeScorer(["rougeL"], use_stemmer=True)
