r"""Plain against norm-preserving projection, with and without clusters, on the task of `bench/concepts.py`.

    python bench/concepts_norm.py --out bench/results/concepts_norm.json

The same bases with and without clusters, each plain and with the norm kept. All of them are measured on five held-out
authors, so that two rows differ by the norm or by the clusters alone; which may be used is said by the development
authors, where the others must not lose more than in `bench/concepts.py`. Besides recalls, the answers to the author's
questions are read for fluency: their perplexity under the model without the edit (which knows the author, so a right
answer has the lowest), and the share of word triples that an answer repeats. What `--out` holds already is not measured
again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from concepts import LEAST_FALL, MOST_LOSS, Candidate, develop, subspace_fit
from concepts_task import (
    DEVELOPMENT,
    DEVELOPMENT_OTHERS,
    FIT_RETAIN,
    HELD_OUT,
    HELD_OUT_OTHERS,
    MODEL,
    SITES,
    Author,
    Bench,
    Row,
    Rows,
    sample,
    text,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from guard.demo.evaluate import answer_losses, greedy_answers, rouge_recall
from guard.fit.hooks import edits
from guard.interventions.edits import edit_rows
from guard.interventions.subspace import SubspaceConfig
from guard.packs.fingerprint import model_fingerprint

SEED, CLUSTERS = 2, 4
# basis and its rank; with clusters, the directions are divided among them
BASES = (("contrast", CLUSTERS), ("difference", CLUSTERS))


def candidates(bench: Bench) -> list[Candidate]:
    """Every basis, plain and keeping the norm, of all texts and of clusters."""
    found = []
    for clusters in (1, CLUSTERS):
        for keep_norm in (False, True):
            kind = f"{'clusters' if clusters > 1 else 'one basis'}, {'norm kept' if keep_norm else 'plain'}"
            for basis, rank in BASES:
                config = SubspaceConfig.model_validate({
                    "kind": basis, "max_rank": rank, "energy": 1.0, "held_out_share": 0.0, "keep_norm": keep_norm,
                    "clusters": clusters,
                })
                name = f"{basis} rank {clusters if basis == 'difference' else rank}"
                found.append(Candidate(kind, name, subspace_fit(bench, SITES, config)))
    return found


def fluency(bench: Bench, rows: Sequence[Row], edit: Rows) -> dict[str, float]:
    """Recall, perplexity and repetition of the edited model's answers."""
    questions = [row["question"] for row in rows]
    with edits(bench.model, edit):
        answers = greedy_answers(bench.model, bench.tokenizer, questions)
    losses = answer_losses(bench.model, bench.tokenizer, list(zip(questions, answers, strict=True)))
    return {
        "recall": fmean(rouge_recall(row["answer"], answer) for row, answer in zip(rows, answers, strict=True)),
        "median_log_perplexity": median(losses), "repeated_triples": fmean(map(repeated, answers)),
    }


def repeated(answer: str) -> float:
    """Share of the word triples of an answer that it has had before."""
    words = answer.split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1.0 - len(set(triples)) / len(triples) if triples else 0.0


def measured(
    bench: Bench, candidate: Candidate, authors: Sequence[tuple[Author, float]], others: Sequence[Row], folder: Path
) -> dict[str, Any]:
    """The row of the table: means over the held-out authors with their recall before, and the worst one."""
    falls, losses, answers = [], [], []
    for author, clean in authors:
        edit = edit_rows(candidate.fit(author, folder))
        answers.append(fluency(bench, author.rows, edit))
        falls.append(1.0 - answers[-1]["recall"] / clean)
        losses.append(bench.loss("others", others, edit)["loss"])
        print(candidate.method, author.number, answers[-1], losses[-1], flush=True)
    met = sum(fall >= LEAST_FALL and loss <= MOST_LOSS for fall, loss in zip(falls, losses, strict=True))
    return {
        "recall_falls_by": round(fmean(falls), 4),
        "recall_falls_by_at_least": round(min(falls), 4), "others_lose": round(fmean(losses), 4),
        "others_lose_at_most": max(losses), "authors_that_meet_the_bar": met,
        "perplexity_of_answers": round(math.exp(fmean(found["median_log_perplexity"] for found in answers)), 2),
        "repeated_triples": round(fmean(found["repeated_triples"] for found in answers), 4),
    }


def run(folder: Path, report: dict[str, Any], save: Callable[[dict[str, Any]], object]) -> None:
    """Measure what `report` lacks; `save` gets it after every row."""
    started, spent = time.monotonic(), report.get("seconds", 0)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    bench = Bench(model, AutoTokenizer.from_pretrained(MODEL), model_fingerprint(MODEL))
    held_out = sorted(random.Random(SEED).sample(HELD_OUT, 5))
    retain = [text(row) for row in sample(FIT_RETAIN, 5, SEED)]
    found, others = candidates(bench), sample(DEVELOPMENT_OTHERS, 1, SEED)[::2]
    held_out_others = sample(HELD_OUT_OTHERS, 1, SEED)
    report |= {
        "seed": SEED, "clusters": CLUSTERS, "sites": [str(site) for site in SITES],
        "allowed_loss_in_development": MOST_LOSS / 2, "questions": {
            "of_the_author": 20, "of_other_authors": len(held_out_others), "development_others": len(others),
            "retain_texts_of_a_fit": len(retain),
        }, "authors": {"development": list(DEVELOPMENT), "held_out": held_out},
    }
    if "development" not in report:
        authors = [bench.author(number, retain) for number in DEVELOPMENT]
        report["development"] = develop(bench, found, authors, others, folder)
    authors = [bench.author(number, retain) for number in held_out]
    before = [fmean(bench.recalls(author.rows)) for author in authors]
    with_before = list(zip(authors, before, strict=True))
    for candidate in found:
        row = f"{candidate.method}, {candidate.name}"
        if row not in report["table"]:
            loss = report["development"][candidate.method][candidate.name]["others_loss"]
            report["table"][row] = {"may_be_used_by_development": loss <= MOST_LOSS / 2} | measured(
                bench, candidate, with_before, held_out_others, folder
            )
            save({**report, "seconds": spent + round(time.monotonic() - started)})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    report = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"table": {}}
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), report, lambda found: out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8"))


if __name__ == "__main__":
    main()
