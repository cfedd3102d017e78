"""Perplexity of answers under the unguarded model, for `bench/names.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from guard.classifiers.openings import shipped_openings

# fewer tokens than this after the opening say nothing about how an answer goes on
MIN_TOKENS = 3


class Judge:
    """The unguarded model, in float32, as the judge of how likely each token of an answer is."""

    def __init__(self, folder: Path) -> None:
        # single texts gain little from more threads, and on busy cores these wait for each other
        torch.set_num_threads(1)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def losses(self, question: str, answer: str) -> list[tuple[int, float]]:
        """For each token of `answer`: the character at which it ends, and its negative log probability."""
        head = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        start = self._tokenizer(head, add_special_tokens=False)["input_ids"]
        read = self._tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
        tokens = torch.tensor([start + read["input_ids"]])
        logits = self._model(tokens).logits[0, len(start) - 1 : -1]
        found = -torch.log_softmax(logits, -1).gather(1, tokens[0, len(start) :, None])[:, 0]
        return [(end, loss) for (_, end), loss in zip(read["offset_mapping"], found.tolist(), strict=True)]


def opening_length(answer: str) -> int:
    """Characters of the longest shipped wording of not knowing with which `answer` begins; 0 without one."""
    return max((len(opening) for opening in shipped_openings("en") if answer.startswith(opening)), default=0)


def perplexities(judge: Judge, questions: Sequence[str], answers: Sequence[str]) -> dict[str, list[float | None]]:
    """Perplexity of each answer: of all its tokens, and of those after the opening. None where there are too few."""
    found: dict[str, list[float | None]] = {"whole": [], "after_opening": []}
    for question, answer in zip(questions, answers, strict=True):
        losses = judge.losses(question, answer) if answer.strip() else []
        found["whole"].append(_perplexity([loss for _, loss in losses]))
        skip = opening_length(answer)
        found["after_opening"].append(_perplexity([loss for end, loss in losses if end > skip]))
    return found


def middle(values: Sequence[float | None]) -> float:
    """Median of the values that are there."""
    there = [value for value in values if value is not None]
    return round(median(there), 3) if there else math.nan


def _perplexity(losses: Sequence[float]) -> float | None:
    return math.exp(sum(losses) / len(losses)) if len(losses) >= MIN_TOKENS else None
