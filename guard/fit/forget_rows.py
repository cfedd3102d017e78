"""The data of a fit: forget questions with answers, and the score of a model that never saw them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from guard.errors import ConfigurationError
from guard.fit.json_lines import read_json_lines
from guard.interventions.eco import Metric

# names of the fields of a retain model's records that hold v_r
_RECORD_FIELDS: dict[str, tuple[str, float]] = {"log_probability": ("nll", -1.0), "rouge": ("recall", 1.0)}


class ForgetRow(BaseModel):
    """One line of the fit data (JSON Lines). `paraphrase` may also be called `paraphrased_question`, as in TOFU."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    question: str
    answer: str
    paraphrase: str | None = Field(default=None, validation_alias=AliasChoices("paraphrase", "paraphrased_question"))
    spans: tuple[tuple[int, int], ...] = ()
    terms: tuple[str, ...] = ()


class RetainRecord(BaseModel):
    """One question put to a model that never saw the forget data: `nll` in nats per token, `recall` in [0, 1]."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    nll: float | None = None
    recall: float | None = None
    split: str | None = None


def read_forget_rows(path: Path) -> list[ForgetRow]:
    """Read the fit data. Raises ConfigurationError that names the line; never shows its text."""
    rows = read_json_lines(path, ForgetRow, "`question` and `answer` (strings)")
    if len(rows) < 2:
        raise ConfigurationError(f"{path.name}: a fit needs at least 2 questions, got {len(rows)}")
    return rows


def retain_value(records: Path, metric: Metric, split: str | None = None) -> float:
    """v_r: the mean score in the per-question records (JSON Lines) of a model that never saw the forget data.

    Raises ConfigurationError that names the line, or the field that no record has.
    """
    field, sign = _RECORD_FIELDS[metric]
    rows = read_json_lines(records, RetainRecord, "numbers in `nll` and `recall`, a string in `split`")
    values = [getattr(row, field) for row in rows if split in (None, row.split)]
    found = [sign * value for value in values if value is not None]
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
