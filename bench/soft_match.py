"""What soft matching alone does to answers of the bundled model, in transformers, without a server.

    python bench/soft_match.py --out bench/results/soft_match.json

Strengths are compared on TOFU authors 180-189 and reported for 190-199 (paraphrased questions, every third). Penalties
are those of the author who is asked about; the words of the question are free. The other side is what somebody else's
penalties do: questions on authors 100-109 under those of 180-189, and on 110-119 under those of 190-199. Recall is
ROUGE-L recall of the true answer. Nothing else of the guard runs: no detector, corruption, mask or opening.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from guard.classifiers.detector import Detector
from guard.classifiers.encoder import Encoder
from guard.demo.admits import admits_ignorance
from guard.demo.corpus import QUESTIONS_PER_AUTHOR, author_rows, paraphrases
from guard.demo.evaluate import MAX_NEW_TOKENS, chat_prompt, rouge_recall
from guard.demo.write_tenants import target_of
from guard.errors import DetectorError
from guard.policy import ConstraintPolicy, Policy, Target, Tenant, TenantSpec, tenant_of
from guard.service.soft_match import SoftMatch

STRENGTHS = (0.0, 2.0, 5.0, 10.0)
EVERY = 3
AUTHORS = 10
# first author who is forgotten, first of others
SPLITS = {"development": (180, 100), "reported": (190, 110)}
# recall that others' questions may lose where a strength is chosen
ALLOWED_LOSS = 0.02
MODEL = Path(__file__).parents[1] / "guard" / "demo" / "model"
BATCH = 35
Row = dict[str, str]


class _Bias(LogitsProcessor):
    """Adds a bias [batch, vocabulary] to the logits of every step, as vLLM's `logit_bias` does."""

    def __init__(self, bias: torch.Tensor) -> None:
        self._bias = bias

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + self._bias


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = asyncio.run(measure(arguments.threads))
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


async def measure(threads: int) -> dict[str, Any]:
    """All figures."""
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    report: dict[str, Any] = {"questions_per_split": len(_questions(0)), "allowed_loss": ALLOWED_LOSS}
    with tempfile.TemporaryDirectory() as folder:
        detector = Detector(Encoder(cache_dir=Path(folder), threads=threads))
        soft = SoftMatch(detector.background(), tokenizer)
        start = time.perf_counter()
        await soft.built(_tenant(SPLITS["development"][0], 1.0), range(AUTHORS))
        report["seconds_until_ready"] = round(time.perf_counter() - start, 1)
        for split, (forgotten, others) in SPLITS.items():
            report[split] = await _split(model, tokenizer, soft, forgotten, others)
        soft.close()
        detector.close()
    report["chosen_strength"] = chosen = _choose(report["development"])
    report["reported_at_chosen"] = report["reported"][f"strength {chosen:g}"]
    return report


async def _split(model: Any, tokenizer: Any, soft: SoftMatch, forgotten: int, others: int) -> dict[str, Any]:
    asked, unrelated = _questions(forgotten), _questions(others)
    plain = {False: _answers(model, tokenizer, asked, [{}] * len(asked)),
             True: _answers(model, tokenizer, unrelated, [{}] * len(unrelated))}
    table: dict[str, Any] = {}
    for strength in STRENGTHS:
        tenant = _tenant(forgotten, strength)
        await soft.built(tenant, range(AUTHORS))
        row: dict[str, Any] = {}
        for is_other, rows in ((False, asked), (True, unrelated)):
            biases = [
                await soft.penalties(tenant, [number // (len(rows) // AUTHORS)], question["question"])
                for number, question in enumerate(rows)
            ]
            if strength and not all(biases):
                raise DetectorError("the words of an author are not built")
            texts = _answers(model, tokenizer, rows, biases) if strength else plain[is_other]
            name = "others" if is_other else "forgotten"
            pairs = list(zip(rows, texts, strict=True))
            row[f"{name}_recall"] = round(mean(rouge_recall(one["answer"], text) for one, text in pairs), 4)
            row[f"{name}_admits_ignorance"] = round(mean(admits_ignorance(text) for text in texts), 4)
            row[f"{name}_unchanged"] = round(
                mean(text == before for text, before in zip(texts, plain[is_other], strict=True)), 4
            )
            row[f"{name}_mean_words"] = round(mean(len(text.split()) for text in texts), 1)
            row[f"{name}_mean_tokens_with_penalty"] = round(mean(len(bias) for bias in biases), 1)
        table[f"strength {strength:g}"] = row
    return table


def _choose(table: dict[str, Any]) -> float:
    """Least recall of the forgotten among the strengths that cost others no more than `ALLOWED_LOSS`."""
    before = table["strength 0"]["others_recall"]
    allowed = [s for s in STRENGTHS if before - table[f"strength {s:g}"]["others_recall"] <= ALLOWED_LOSS]
    return min(allowed, key=lambda s: (table[f"strength {s:g}"]["forgotten_recall"], s))


def _questions(first: int) -> list[Row]:
    """The same number of questions on each author, in their paraphrased wording where TOFU has one."""
    reworded = paraphrases()
    rows = author_rows(first, first + AUTHORS - 1)
    return [
        {"question": reworded.get(row["question"], row["question"]), "answer": row["answer"]}
        for number, row in enumerate(rows) if number % QUESTIONS_PER_AUTHOR % EVERY == 0
    ]


def _tenant(first: int, strength: float) -> Tenant:
    targets = tuple(Target(**target_of(author)) for author in range(first, first + AUTHORS))
    policy = Policy(constraint=ConstraintPolicy(soft=strength))
    return tenant_of(TenantSpec(name=f"from-{first}", policy=policy, targets=targets), 1)


@torch.inference_mode()
def _answers(model: Any, tokenizer: Any, rows: Sequence[Row], biases: Sequence[dict[int, float]]) -> list[str]:
    """Greedy answers, each under its own bias."""
    tokenizer.padding_side = "left"
    texts: list[str] = []
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        bias = torch.zeros(len(rows[part]), model.config.vocab_size)
        for number, tokens in enumerate(biases[part]):
            bias[number, list(tokens)] = torch.tensor(list(tokens.values()))
        inputs = tokenizer([chat_prompt(row["question"]) for row in rows[part]], return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        output = model.generate(
            **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
            logits_processor=LogitsProcessorList([_Bias(bias)]),
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        texts += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return texts


if __name__ == "__main__":
    main()
