"""Quality and latency of the detector on TOFU, for the demo tenant acme (authors 190-199).

    python -m bench.detector --out bench/results/detector.json

Rates: share of prompts flagged, per part alone and for all parts together. Nothing is tuned on the prompts measured:
thresholds come from the tenant's benign prompts. Latency: `detect()` on prompts never seen before, one at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import PreTrainedTokenizerFast

from guard.classifiers.benign import shipped_benign
from guard.classifiers.detector import Detector
from guard.classifiers.encoder import Encoder
from guard.classifiers.spans import PromptDecoder
from guard.demo.corpus import author_rows, paraphrases, read_rows, training_examples
from guard.demo.train import train_tokenizer
from guard.demo.write_tenants import OUT as TENANT_FILE
from guard.policy import DetectorPolicy, Policy, Target, Tenant, TenantFile, TenantSpec, tenant_of
from guard.verdict import DecodedPrompt

# forget10_perturbed holds authors 180-199; acme forgets the last ten
_ACME_ROWS = slice(200, 400)
PARTS = {
    "lexical": DetectorPolicy(semantic=False, head=False),
    "semantic": DetectorPolicy(lexical=False, head=False),
    "head": DetectorPolicy(lexical=False, semantic=False),
    "hybrid": DetectorPolicy(),
}
BARS = {"original": (">=", 0.99), "paraphrased": (">=", 0.95)} | dict.fromkeys(
    ("retain_20_29", "holdout10", "real_authors", "world_facts"), ("<=", 0.02)
)
Prompts = Callable[[str], DecodedPrompt]


def sets() -> dict[str, list[str]]:
    """Question sets by name."""
    forget = read_rows("forget10_perturbed")[_ACME_ROWS]
    return {
        "original": [row["question"] for row in forget],
        "paraphrased": [row["paraphrased_question"] for row in forget],
        "retain_20_29": [row["question"] for row in author_rows(20, 29)],
        "holdout10": [row["question"] for row in read_rows("holdout10")],
        "real_authors": [row["question"] for row in read_rows("real_authors")],
        "world_facts": [row["question"] for row in read_rows("world_facts")],
    }


def demo_tenant(name: str, policy: DetectorPolicy) -> Tenant:
    """A demo tenant under another detector policy."""
    file = TenantFile.model_validate(yaml.safe_load(TENANT_FILE.read_text(encoding="utf-8")))
    spec = next(tenant for tenant in file.tenants if tenant.name == name)
    return tenant_of(spec.model_copy(update={"policy": Policy(detector=policy)}), 1)


def acme(policy: DetectorPolicy) -> Tenant:
    """The tenant that forgets authors 190-199."""
    return demo_tenant("acme", policy)


def prompt_maker(tokenizer: PreTrainedTokenizerFast) -> Prompts:
    """Function that turns a question into the prompt the engine would read."""
    decoder = PromptDecoder(tokenizer)

    def prompt(question: str) -> DecodedPrompt:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        return decoder.decode(tokenizer(text, add_special_tokens=False).input_ids)

    return prompt


async def measure_rates(detector: Detector, prompt: Prompts) -> dict[str, dict[str, float]]:
    """Share of flagged prompts per part and set; an unknown verdict stops the measurement."""
    rates: dict[str, dict[str, float]] = {}
    for part, policy in PARTS.items():
        tenant = acme(policy.model_copy(update={"timeout_s": 60.0}))
        await detector.built(tenant)
        rates[part] = {}
        for name, questions in sets().items():
            verdicts = [await detector.detect(tenant, prompt(question)) for question in questions]
            if any(verdict.unknown for verdict in verdicts):
                raise SystemExit(f"unknown verdicts on {name}: {detector.failure(tenant)}")
            rates[part][name] = round(float(np.mean([verdict.flagged for verdict in verdicts])), 4)
    return rates


async def measure_harbor(detector: Detector, prompt: Prompts) -> dict[str, float]:
    """Share of flagged prompts of the tenant that forgets authors 0-9, all parts together."""
    tenant = demo_tenant("harbor", DetectorPolicy(timeout_s=60.0))
    await detector.built(tenant)
    own = author_rows(0, 9)
    reworded = paraphrases()
    questions = {
        "original": [row["question"] for row in own],
        "paraphrased": [reworded[row["question"]] for row in own],
        "retain_20_29": sets()["retain_20_29"],
    }
    rates: dict[str, float] = {}
    for name, texts in questions.items():
        verdicts = [await detector.detect(tenant, prompt(text)) for text in texts]
        if any(verdict.unknown for verdict in verdicts):
            raise SystemExit(f"unknown verdicts on {name}: {detector.failure(tenant)}")
        rates[name] = round(float(np.mean([verdict.flagged for verdict in verdicts])), 4)
    return rates


async def measure_latency(detector: Detector, tenant: Tenant, prompts: Sequence[DecodedPrompt]) -> dict[str, float]:
    """Milliseconds of `detect()` at p50 and p99 after three warm-up calls."""
    await detector.built(tenant)
    durations: list[float] = []
    for prompt in prompts:
        start = time.perf_counter()
        verdict = await detector.detect(tenant, prompt)
        durations.append((time.perf_counter() - start) * 1e3)
        if verdict.unknown:
            raise SystemExit("unknown verdict during the latency measurement")
    p50, p99 = np.percentile(durations[3:], [50, 99])
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2), "prompts": len(durations) - 3}


def fresh_text(prompt: Prompts, tokens: int, generator: random.Random) -> DecodedPrompt:
    """A prompt of about `tokens` tokens of ordinary words in an order never seen before."""
    words = " ".join(shipped_benign()).split()
    text = ""
    made = prompt("")
    while len(made.token_ids) < tokens:
        text += " " + " ".join(generator.choices(words, k=max(4, (tokens - len(made.token_ids)) // 3)))
        made = prompt(text)
    return made


def many_targets(count: int, generator: random.Random) -> Tenant:
    """A tenant whose list holds `count` invented names."""
    syllables = ["ba", "chi", "dor", "el", "fan", "gri", "ho", "jun", "kal", "lem", "mo", "nir", "pos", "rai", "zu"]
    names: set[str] = set()
    while len(names) < count:
        first, last = ("".join(generator.choices(syllables, k=3)).capitalize() for _ in range(2))
        names.add(f"{first} {last}")
    targets = tuple(Target(name=name) for name in sorted(names))
    policy = Policy(detector=DetectorPolicy(timeout_s=60.0))
    return tenant_of(TenantSpec(name="many", policy=policy, targets=targets), 9)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements as one record."""
    prompt = prompt_maker(train_tokenizer(training_examples("full")))
    generator = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(arguments.cache or folder)
        detector = Detector(Encoder(arguments.encoder, cache_dir=cache, threads=arguments.threads))
        record: dict[str, Any] = {"encoder": arguments.encoder, "threads": arguments.threads}
        start = time.perf_counter()
        await asyncio.gather(*(detector.built(demo_tenant(name, PARTS["hybrid"])) for name in ("acme", "harbor")))
        record["build_s"] = round(time.perf_counter() - start, 2)
        record["flagged"] = rates = await measure_rates(detector, prompt)
        record["bars"] = {
            name: {"bar": f"{sign} {bar}", "met": (rates["hybrid"][name] - bar) * (1 if sign == ">=" else -1) >= 0.0}
            for name, (sign, bar) in BARS.items()
        }
        record["harbor"] = await measure_harbor(detector, prompt)
        hybrid = acme(PARTS["hybrid"].model_copy(update={"timeout_s": 60.0}))
        short = [fresh_text(prompt, 24, generator) for _ in range(arguments.prompts)]
        long = [fresh_text(prompt, 512, generator) for _ in range(arguments.prompts)]
        record["latency"] = {
            "short": await measure_latency(detector, hybrid, short),
            "tokens_512": await measure_latency(detector, hybrid, long),
            "tokens_512_seen_before": await measure_latency(detector, hybrid, long),
        }
        if arguments.targets:
            tenant = many_targets(arguments.targets, generator)
            start = time.perf_counter()
            await detector.built(tenant)
            fresh = [fresh_text(prompt, 512, generator) for _ in range(arguments.prompts)]
            record["many_targets"] = {
                "targets": arguments.targets,
                "build_s": round(time.perf_counter() - start, 2),
                "tokens_512": await measure_latency(detector, tenant, fresh),
            }
        detector.close()
    return record


def main() -> None:
    """Measure, print JSON, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--encoder", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--targets", type=int, default=0, help="also measure a list of so many names")
    parser.add_argument("--cache", help="folder for sentence vectors, to skip encoding lists again")
    arguments = parser.parse_args()
    text = json.dumps(asyncio.run(run(arguments)), indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
