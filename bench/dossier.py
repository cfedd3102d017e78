"""How much of what a model knows of a name a dossier covers, and how long it takes: real people of RWKU, made-up names.

    python -m bench.dossier --rwku FOLDER --url http://127.0.0.1:8000 --key KEY --first 51 --last 60 \
        --out bench/results/dossier.json

Needs a server of an instruct model and the key of a tenant without a list. For each subject the questions of RWKU
levels 1 and 2 are asked (greedy); those answered right, where the question does not hold the answer, are what the
model knows. Covered: the answer is among the phrases that the dossier forbids, or in its short statements, or the
detector recognises the question by the examples (lexical matching, which finds the name itself, is switched off).
Subjects 1-50 chose the settings (`guard.service.dossier.contrast.LIMITS`), others are reported. Made-up names, other
than the twins, show how often something passes that the model cannot know.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from guard.classifiers.detector import Detector
from guard.classifiers.encoder import Encoder
from guard.classifiers.normalize import mask_form
from guard.policy import DetectorPolicy, Policy, Target, Tenant, TenantSpec, tenant_of
from guard.service.dossier.asking import Draw, Served
from guard.service.dossier.contrast import LIMITS
from guard.service.dossier.dossier import Dossier
from guard.service.dossier.from_model import dossier_from_model
from guard.service.dossier.interview import DEPTH, NoSteps
from guard.service.dossier.templates import FILL
from guard.service.dossier.twin_answers import TwinAnswers
from guard.verdict import DecodedPrompt

# none of them is a twin, and none was looked at when the limits were chosen
MADE_UP = ("Ingrid Halvane", "Desmond Parquet-Lisle", "Maura Tellingham", "Casper Ondrovic", "Philippa Graystoke-Venn")
ANSWER_TOKENS = 48


class Requests(NoSteps):
    """Counts the requests of one dossier."""

    def __init__(self) -> None:
        self.count = 0

    def advance(self) -> None:
        self.count += 1


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def holds(text: str, phrase: str) -> bool:
    """Whether `text` says `phrase` as whole words in mask form."""
    return f" {mask_form(phrase)} " in f" {mask_form(text)} "


async def known_answers(served: Served, rwku: Path, subjects: Sequence[str]) -> list[dict[str, str]]:
    """RWKU rows (each query once) that the model answers right; the answer is not in the query and is not the name."""
    found: dict[str, dict[str, str]] = {}
    for level in (1, 2):
        for row in rows(rwku / f"forget_level{level}.jsonl"):
            named = holds(row["subject"], row["answer"]) or holds(row["answer"], row["subject"])
            if row["subject"] in subjects and not named and not holds(row["query"], row["answer"]):
                found.setdefault(row["query"], row)
    asked = list(found.values())
    prompts = [FILL + row["query"] if row["type"] == "cloze" else row["query"] for row in asked]
    answers = await served.ask_all([Draw(prompt, tokens=ANSWER_TOKENS) for prompt in prompts])
    return [row for row, answer in zip(asked, answers, strict=True) if holds(answer, row["answer"])]


def without_lexical(target: Target) -> Tenant:
    """A tenant that recognises the target by meaning and examples alone."""
    policy = Policy(detector=DetectorPolicy(lexical=False, timeout_s=60.0))
    return tenant_of(TenantSpec(name="dossier", policy=policy, targets=(target,)), 1)


async def recognised(detector: Detector, target: Target, questions: Sequence[str]) -> list[bool]:
    """Whether the detector flags each question, without matching the name."""
    tenant = without_lexical(target)
    await detector.built(tenant)
    verdicts = [
        await detector.detect(tenant, DecodedPrompt((0,), text, ((0, len(text)),), (False,))) for text in questions
    ]
    return [verdict.flagged for verdict in verdicts]


async def measured(served: Served, name: str, twins: TwinAnswers) -> tuple[Dossier, dict[str, Any]]:
    """The dossier on one name, its size and its seconds."""
    requests, start = Requests(), time.perf_counter()
    dossier = await dossier_from_model(served, name, "person", twins, requests)
    seconds = time.perf_counter() - start
    sizes = {field: len(dossier.of(field)) for field in ("aliases", "forbid", "answers", "examples", "neighbours")}
    return dossier, {
        "name": name, "seconds": round(seconds, 1), "requests": requests.count, "known": dossier.known, **sizes,
    }


async def covered(dossier: Dossier, known: Sequence[dict[str, str]], detector: Detector) -> list[dict[str, Any]]:
    """By which part of the dossier each known answer is covered."""
    by_examples = await recognised(detector, dossier.target(), [row["query"] for row in known])
    return [
        {
            "query": row["query"], "answer": row["answer"],
            # a forbidden phrase stops an answer that holds it, not one that is a part of it
            "forbid": any(holds(row["answer"], phrase) for phrase in dossier.of("forbid")),
            "answers": any(holds(text, row["answer"]) for text in dossier.of("answers")), "examples": flagged,
        }
        for row, flagged in zip(known, by_examples, strict=True)
    ]


def share(values: Sequence[bool]) -> float | None:
    """Share of true values, None of none."""
    return round(sum(values) / len(values), 3) if values else None


def summary(people: Sequence[dict[str, Any]], made_up: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares over all known answers, and times."""
    answers = [answer for person in people for answer in person["answers_known"]]
    later = [person["seconds"] for person in (*people, *made_up)[1:]]
    return {
        "known_answers": len(answers),
        "covered_by_phrases": share([answer["forbid"] or answer["answers"] for answer in answers]),
        "covered_by_forbidden_phrases": share([answer["forbid"] for answer in answers]),
        "recognised_by_examples": share([answer["examples"] for answer in answers]),
        "covered": share([answer["forbid"] or answer["answers"] or answer["examples"] for answer in answers]),
        "first_name_s": people[0]["seconds"] if people else None,
        "later_names_median_s": median(later) if later else None,
        "later_names_slowest_s": max(later, default=None),
        "made_up_names_with_nothing": share([not name["known"] for name in made_up]),
    }


def write(
    arguments: argparse.Namespace, model: str, people: list[dict[str, Any]], made_up: list[dict[str, Any]]
) -> None:
    """Write what is measured so far: a long measurement may be cut off."""
    result = {
        "model": model, "subjects": [arguments.first, arguments.last], "limits": asdict(LIMITS), "depth": asdict(DEPTH),
        "load_average": round(os.getloadavg()[1], 1), **summary(people, made_up), "people": people, "made_up": made_up,
    }
    arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


async def run(arguments: argparse.Namespace) -> None:
    """The whole measurement."""
    subjects = [row["target"] for row in rows(arguments.rwku / "forget_target.jsonl")]
    subjects = subjects[arguments.first - 1 : arguments.last]
    detector = Detector(Encoder())
    people: list[dict[str, Any]] = []
    made_up: list[dict[str, Any]] = []
    async with Served(arguments.url, arguments.key, arguments.model) as served:
        await served.check()
        known = await known_answers(served, arguments.rwku, subjects)
        if arguments.known_only:
            subjects = [name for name in subjects if any(row["subject"] == name for row in known)]
        twins = TwinAnswers()
        for name in subjects:
            dossier, figures = await measured(served, name, twins)
            own = [row for row in known if row["subject"] == name]
            people.append({**figures, "answers_known": await covered(dossier, own, detector)})
            print(json.dumps(people[-1], ensure_ascii=False), flush=True)
            write(arguments, served.model, people, made_up)
        for name in MADE_UP[: arguments.made_up]:
            dossier, figures = await measured(served, name, twins)
            made_up.append({**figures, "passed": [row.text for row in dossier.rows if row.field == "forbid"]})
            print(json.dumps(made_up[-1], ensure_ascii=False), flush=True)
            write(arguments, served.model, people, made_up)
    detector.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rwku", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", default=os.environ.get("GUARD_KEY", ""))
    parser.add_argument("--model", default="")
    parser.add_argument("--first", type=int, default=51)
    parser.add_argument("--last", type=int, default=60)
    parser.add_argument("--known-only", action="store_true", help="skip subjects of whom the model knows no answer")
    parser.add_argument("--made-up", type=int, default=len(MADE_UP), help="number of made-up names")
    parser.add_argument("--out", type=Path, required=True)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
