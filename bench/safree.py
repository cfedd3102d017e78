"""One author's name projected out of the prompt's embeddings (SAFREE): what is forgotten, and what it costs.

    python bench/safree.py --out bench/results/safree.json

The concept of an author is the name, from the forget-list's rule; kappa is calibrated to edit at most 5 % of the
questions of authors that nothing else here uses. The share of rare tokens and the projector are chosen on development
authors, the table is measured on five others with the questions of authors that were not calibrated on. A prompt
without a trigger is not touched, so only edited prompts are asked again. Measured: ROUGE-L recall of greedy answers.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from guard.demo.corpus import TOFU, author_rows, paraphrases
from guard.demo.evaluate import chat_prompt, greedy_answers, rouge_recall
from guard.demo.write_tenants import author_name
from guard.errors import ConfigurationError
from guard.fit.safree import (
    KappaCalibration,
    calibrate_kappa,
    concept_tokens,
    embedding_center,
    embedding_concept,
    rare_tokens,
    token_counts,
)
from guard.interventions.safree import Concept, Projector, SafreeConfig, replace

MODEL = TOFU.parent / "model"
DEVELOPMENT = (3, 9, 14)
HELD_OUT = range(180, 200)
CALIBRATION = range(20, 80)
DEVELOPMENT_OTHERS = range(80, 140)
HELD_OUT_OTHERS = range(140, 180)
TARGET, MAX_NEW_TOKENS = 0.05, 160
Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is chosen on development authors."""

    most: float
    projector: Projector

    def __str__(self) -> str:
        return f"tokens below {self.most:g} of the text, {self.projector} projector"


@dataclass(frozen=True, slots=True)
class Fitted:
    """One author's concept and configuration."""

    concept: Concept
    config: SafreeConfig
    kappa: KappaCalibration


class Prompts:
    """The model, asked with prompts whose embedding rows may be replaced."""

    def __init__(self) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
        self.table: Tensor = self.model.get_input_embeddings().weight.detach()
        questions = [row["question"] for number in CALIBRATION for row in author_rows(number, number)]
        self.counts = token_counts(self.tokenizer, questions, len(self.table))
        self.center = embedding_center(self.table, self.counts)
        drawn = random.Random(0).sample(questions, 400)
        self.benign = [self.rows(question)[0] for question in drawn]
        self._clean: dict[str, float] = {}

    def rows(self, question: str) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the question's ordinary tokens, all rows of the prompt, and where the former lie in the latter."""
        ids = self.tokenizer(chat_prompt(question))["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        place = torch.tensor([index for index, token in enumerate(ids) if token not in special])
        every = self.table[torch.tensor(ids)]
        return every[place], every, place

    def fit(self, number: int, setting: Setting) -> Fitted:
        """The concept of one author, with kappa calibrated."""
        name = author_name(author_rows(number, number))
        tokens = rare_tokens(concept_tokens(self.tokenizer, [name]), self.counts, setting.most)
        concept = embedding_concept(self.table, tokens, self.center)
        config = SafreeConfig(projector=setting.projector)
        forget = [self.rows(row["question"])[0] for row in author_rows(number, number)]
        kappa = calibrate_kappa(self.benign, concept, config, forget=forget, target=TARGET)
        return Fitted(concept, config.model_copy(update={"kappa": kappa.kappa}), kappa)

    def ask(self, rows: Sequence[Row], fitted: Fitted, wording: str = "question") -> dict[str, float]:
        """Mean recall before and after, its loss, and the share of prompts that are edited."""
        missing = [row for row in rows if row[wording] not in self._clean]
        answers = greedy_answers(self.model, self.tokenizer, [row[wording] for row in missing])
        for row, answer in zip(missing, answers, strict=True):
            self._clean[row[wording]] = rouge_recall(row["answer"], answer)
        before = [self._clean[row[wording]] for row in rows]
        after = [self._edited(row, wording, fitted) for row in rows]
        kept = [clean if value is None else value for clean, value in zip(before, after, strict=True)]
        return {
            "before": round(fmean(before), 4), "after": round(fmean(kept), 4),
            "loss": round(1.0 - fmean(kept) / fmean(before), 4),
            "prompts_edited": round(sum(value is not None for value in after) / len(rows), 4),
        }

    @torch.inference_mode()
    def _edited(self, row: Row, wording: str, fitted: Fitted) -> float | None:
        ordinary, every, place = self.rows(row[wording])
        found = replace(ordinary, fitted.concept, fitted.config)
        if not len(found.positions) and not len(found.erase):
            return None
        every[place[found.positions]] = found.rows
        # a trigger without a safe token becomes the mean row
        every[place[found.erase]] = fitted.concept.center
        output = self.model.generate(
            inputs_embeds=every[None], attention_mask=torch.ones(1, len(every), dtype=torch.int64),
            max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
        )
        return rouge_recall(row["answer"], self.tokenizer.decode(output[0], skip_special_tokens=True))


def sample(authors: range, per_author: int, seed: int) -> list[Row]:
    """Some questions of each author."""
    draw = random.Random(seed)
    return [row for number in authors for row in draw.sample(author_rows(number, number), per_author)]


def develop(prompts: Prompts, seed: int) -> dict[Setting, dict[str, float]]:
    """Mean figures over the development authors of every setting that fits all of them."""
    others = sample(DEVELOPMENT_OTHERS, 1, seed)
    results = {}
    for setting in [Setting(most, projector) for most in (1e-4, 2e-4, 5e-4, 1.0) for projector in ("paper", "exact")]:
        try:
            fitted = {number: prompts.fit(number, setting) for number in DEVELOPMENT}
        except ConfigurationError as error:
            print(setting, error, flush=True)
            continue
        results[setting] = {
            "recall": round(fmean(prompts.ask(author_rows(n, n), found)["after"] for n, found in fitted.items()), 4),
            "others_loss": round(fmean(prompts.ask(others, found)["loss"] for found in fitted.values()), 4),
        }
        print(setting, results[setting], flush=True)
    return results


def run(seed: int) -> dict[str, Any]:
    """The whole experiment."""
    prompts = Prompts()
    results = develop(prompts, seed)
    chosen = min(results, key=lambda setting: (results[setting]["others_loss"] > 0.01, results[setting]["recall"]))
    held_out = sorted(random.Random(seed).sample(HELD_OUT, 5))
    others, reworded = sample(HELD_OUT_OTHERS, 3, seed), paraphrases()
    by_author: dict[str, Any] = {}
    for number in held_out:
        fitted = prompts.fit(number, chosen)
        rows = author_rows(number, number)
        for row in rows:
            row["paraphrased"] = reworded[row["question"]]
        by_author[str(number)] = {
            "author": prompts.ask(rows, fitted), "author_paraphrased": prompts.ask(rows, fitted, "paraphrased"),
            "other_authors": prompts.ask(others, fitted), "rank": len(fitted.concept.basis),
            "kappa": round(fitted.kappa.kappa, 4),
        }
        print(number, json.dumps(by_author[str(number)]), flush=True)

    def losses(part: str, figure: str = "loss") -> list[float]:
        return [figures[part][figure] for figures in by_author.values()]

    return {
        "table": {
            "recall_falls_by": round(fmean(losses("author")), 4), "recall_falls_by_at_least": min(losses("author")),
            "paraphrased_falls_by": round(fmean(losses("author_paraphrased")), 4),
            "author_prompts_edited": round(fmean(losses("author", "prompts_edited")), 4),
            "others_lose": round(fmean(losses("other_authors")), 4),
            "others_lose_at_most": max(losses("other_authors")),
            "other_prompts_edited": round(fmean(losses("other_authors", "prompts_edited")), 4),
        },
        "chosen": str(chosen), "target_share_of_benign_prompts": TARGET,
        "questions": {"of_the_author": 20, "of_other_authors": len(others), "calibration": len(prompts.benign)},
        "authors": {"development": list(DEVELOPMENT), "held_out": held_out}, "by_author": by_author,
        "development": {str(setting): figures for setting, figures in results.items()},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    report = run(arguments.seed)
    print(json.dumps(report["table"], indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
