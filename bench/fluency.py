"""Perplexity of the guarded answers under the retain model, beside the retain model's own answers.

    python bench/fluency.py ANSWERS.jsonl RETAIN_MODEL --out bench/results/fluency.json

ANSWERS.jsonl is written by `bench/bars.py --answers`; RETAIN_MODEL is a folder made by
`python -m guard.demo.train retain90 --out RETAIN_MODEL`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import mean, median

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from guard.demo.evaluate import answer_losses, greedy_answers


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.answers.read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    questions = [row["question"] for row in rows]
    texts = {
        "guarded": [row["acme"] for row in rows],
        "unguarded": [row["open"] for row in rows],
        "retain90": greedy_answers(model, tokenizer, questions),
    }
    report = {}
    for name, answers in texts.items():
        losses = answer_losses(model, tokenizer, list(zip(questions, answers, strict=True)))
        report[name] = {
            "perplexity": round(math.exp(mean(losses)), 3),
            "median_perplexity": round(math.exp(median(losses)), 3),
            "mean_words": round(mean(len(answer.split()) for answer in answers), 2),
        }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
