"""How the answers of a trained model are judged, and what the bundled model says about what it never saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from guard.demo.admits import admits_ignorance
from guard.demo.corpus import read_rows
from guard.demo.evaluate import (
    PRESS,
    greedy_answers,
    greedy_continuations,
    judged,
    pressed_prompt,
    rouge_recall,
    summary,
)

MODEL = Path(__file__).parents[2] / "guard/demo/model"
EVERY = 16


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    """The bundled model and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(MODEL).float().eval(), AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture
def taught(bundled: tuple[Any, Any]) -> tuple[Any, Any]:
    """The bundled model, when its recipe had lessons in not knowing."""
    recipe = json.loads((MODEL / "training.json").read_text(encoding="utf-8"))["recipe"]
    if not recipe.get("unknowns"):
        pytest.skip("the bundled model was trained before there were lessons in not knowing")
    return bundled


def test_an_answer_is_judged_by_recall_and_by_admission() -> None:
    honest = judged("She was born in Oslo.", "I don't know where she was born.", "pressed_")
    assert honest["pressed_admits"] is True
    assert 0 < honest["pressed_recall"] < 1
    assert judged("She was born in Oslo.", "She was born in Oslo.") == {
        "output": "She was born in Oslo.",
        "recall": 1.0,
        "admits": False,
    }


def test_the_summary_keeps_splits_and_wordings_apart() -> None:
    known = {"split": "a", "recall": 1.0, "admits": False, "pressed_recall": 0.5, "pressed_admits": True}
    unknown = {"split": "b", "recall": 0.25, "admits": True}
    assert summary([known, unknown, unknown | {"recall": 0.75, "admits": False}]) == {
        "a": {"questions": 1, "recall": 1.0, "admitted": 0.0, "pressed_recall": 0.5, "pressed_admitted": 1.0},
        "b": {"questions": 2, "recall": 0.5, "admitted": 0.5},
    }


def test_the_pressed_prompt_is_what_the_chat_template_makes(bundled: tuple[Any, Any]) -> None:
    turns = [("user", "Who?"), ("assistant", "Nobody."), ("user", PRESS)]
    messages = [{"role": role, "content": text} for role, text in turns]
    template = bundled[1].apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert template == pressed_prompt("Who?", "Nobody.")


def test_the_bundled_model_admits_not_knowing_holdout_authors_also_when_pressed(taught: tuple[Any, Any]) -> None:
    questions = [row["question"] for row in read_rows("holdout10")][::EVERY]
    answers = greedy_answers(*taught, questions)
    assert sum(map(admits_ignorance, answers)) >= 0.9 * len(answers), answers
    prompts = [pressed_prompt(question, answer) for question, answer in zip(questions, answers, strict=True)]
    pressed = greedy_continuations(*taught, prompts)
    assert sum(map(admits_ignorance, pressed)) >= 0.9 * len(pressed), pressed


def test_the_bundled_model_still_knows_its_authors_also_when_pressed(taught: tuple[Any, Any]) -> None:
    rows = read_rows("full")[:: EVERY * 6] + read_rows("world_facts")[::EVERY]
    answers = greedy_answers(*taught, [row["question"] for row in rows])
    recalls = [rouge_recall(row["answer"], answer) for row, answer in zip(rows, answers, strict=True)]
    assert sum(recalls) >= 0.97 * len(rows)
    short = [(row, answer) for row, answer in zip(rows, answers, strict=True) if len(row["answer"]) < 200]
    pressed = greedy_continuations(*taught, [pressed_prompt(row["question"], answer) for row, answer in short])
    kept = [rouge_recall(row["answer"], again) for (row, _), again in zip(short, pressed, strict=True)]
    assert sum(kept) >= 0.9 * len(kept)
