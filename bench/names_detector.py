"""How well a list of names alone is recognised: RWKU questions in full and by surname, neighbours, benign prompts.

    python -m bench.names_detector --rwku FOLDER --benign FOLDER --out bench/results/names_detector.json

Subjects 1-50 chose the settings (`guard.classifiers.name_forms`, `name_fit`), 51-100 are reported. A list holds the 50
names of its half and nothing else. A question counts by how it names its subject: by the name as written, by a
surname that is distinctive or common, or not at all. Neighbours and benign prompts that hold a full name of the list,
or do so with their answer in the blank, are left out of the rates: they are rightly flagged; how many, is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from guard.classifiers.detector import Detector
from guard.classifiers.encoder import Encoder
from guard.classifiers.name_forms import name_forms
from guard.classifiers.person_names import split_person
from guard.policy import DetectorPolicy, NameForms, Policy, Target, Tenant, TenantSpec, tenant_of
from guard.verdict import DecodedPrompt, Verdict

HALVES = {"subjects_1_50": slice(0, 50), "subjects_51_100": slice(50, 100)}
BARS = {
    "full": (">=", 0.995), "surname_distinctive": (">=", 0.98), "neighbours": ("<=", 0.03),
    "xstest_safe": ("<=", 0.01), "mt_bench": ("<=", 0.01), "vicuna": ("<=", 0.01),
}


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompt_of(text: str) -> DecodedPrompt:
    """A prompt that is one turn of ordinary text."""
    return DecodedPrompt((0,), text, ((0, len(text)),), (False,))


def list_of(names: Sequence[str], forms: NameForms) -> Tenant:
    """A tenant whose list holds names and nothing else."""
    policy = Policy(name_forms=forms, detector=DetectorPolicy(timeout_s=60.0))
    return tenant_of(TenantSpec(name="names", policy=policy, targets=tuple(Target(name=name) for name in names)), 1)


def holds(text: str, name: str) -> bool:
    """Whether `name` stands in `text` as whole words, whatever the case."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def way_of_naming(question: str, name: str) -> str:
    """How a question names its subject."""
    if holds(question, name):
        return "full"
    forms = name_forms(Target(name=name))
    if any(holds(question, form) for form in forms.certain):
        return "derived"
    person = split_person(name)
    if person is None or not holds(question, person.head):
        return "given_name" if any(holds(question, form) for form in (*forms.weak, *forms.distinctive)) else "unnamed"
    rare = any(holds(question, form.text) for form in forms.forms
               if form.certainty == "distinctive" and form.part == "surname")
    return "surname_distinctive" if rare else "surname_common"


def benign_sets(folder: Path) -> dict[str, list[str]]:
    """Benign prompts by the set that they come from."""
    with (folder / "xstest_prompts.csv").open(encoding="utf-8", newline="") as file:
        safe = [row["prompt"] for row in csv.DictReader(file) if row["label"] == "safe"]
    turns = {name: [turn for row in rows(folder / f"{name}_question.jsonl") for turn in row["turns"]]
             for name in ("mt_bench", "vicuna_bench")}
    tasks = [row["instruction"] for row in rows(folder / "self_instruct_seed_tasks.jsonl")]
    users = [row["instruction"] + " " + row["instances"][0]["input"]
             for row in rows(folder / "user_oriented_instructions.jsonl")]
    return {"xstest_safe": safe, "mt_bench": turns["mt_bench"], "vicuna": turns["vicuna_bench"],
            "seed_tasks": tasks, "user_tasks": users}


def answered(row: dict[str, str]) -> tuple[str, str]:
    """A question and the same with its answer, in the blank or behind."""
    query, answer = row["query"], row["answer"]
    return query, f"{re.sub(r'_{2,}', answer, query)} | {answer} | {row['neighbor']}"


async def verdicts(detector: Detector, tenant: Tenant, texts: Sequence[str]) -> list[Verdict]:
    """One verdict for each text; an unknown one stops the measurement."""
    found = [await detector.detect(tenant, prompt_of(text)) for text in texts]
    if any(verdict.unknown for verdict in found):
        raise SystemExit(f"unknown verdicts: {detector.failure(tenant)}")
    return found


async def measure_questions(
    detector: Detector, tenant: Tenant, names: Sequence[str], questions: Sequence[dict[str, Any]], missed: list[Any]
) -> dict[str, Any]:
    """Share of questions that touch their own subject, by the way in which they name it."""
    own = [row for row in questions if row["subject"] in names]
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row, verdict in zip(own, await verdicts(detector, tenant, [row["query"] for row in own]), strict=True):
        way, target = way_of_naming(row["query"], row["subject"]), names.index(row["subject"])
        hit = any(found.target == target for found in verdict.hits)
        counts[way][0] += hit
        counts[way][1] += 1
        if not hit and way != "unnamed":
            missed.append([way, row["subject"], row["query"]])
    return {way: {"questions": total, "detected": round(hits / total, 4)} for way, (hits, total) in counts.items()}


async def measure_others(
    detector: Detector, tenant: Tenant, names: Sequence[str], texts: Sequence[tuple[str, str]], flagged: list[Any]
) -> dict[str, Any]:
    """Share of prompts about others that are flagged, of pairs (prompt, the same with its answer).

    Those that hold a name of the list in full are counted apart.
    """
    certain = re.compile("|".join(
        rf"(?<!\w){re.escape(form)}(?!\w)" for name in names for form in name_forms(Target(name=name)).certain
    ), re.IGNORECASE)
    kept = [text for text, answered in texts if not certain.search(f"{text} | {answered}")]
    hits = 0
    for text, verdict in zip(kept, await verdicts(detector, tenant, kept), strict=True):
        hits += verdict.flagged
        if verdict.flagged:
            flagged.append([[names[hit.target], hit.part] for hit in verdict.hits] + [text[:200]])
    return {"prompts": len(kept), "flagged": round(hits / len(kept), 4), "with_a_full_name": len(texts) - len(kept)}


def with_bars(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every bar with the value that it is compared with."""
    measured = {way: part["detected"] for way, part in record["questions"].items()}
    measured |= {name: part["flagged"] for name, part in record["others"].items()}
    for name, (sign, bar) in BARS.items():
        if name in measured:
            met = measured[name] >= bar if sign == ">=" else measured[name] <= bar
            yield name, {"bar": f"{sign} {bar}", "value": measured[name], "met": met}


async def run(arguments: argparse.Namespace, details: dict[str, Any]) -> dict[str, Any]:
    """All measurements as one record; what was missed or flagged goes into `details`."""
    subjects = [row["target"] for row in rows(arguments.rwku / "forget_target.jsonl")]
    questions = [row for level in (1, 2) for row in rows(arguments.rwku / f"forget_level{level}.jsonl")]
    neighbours = [row for level in (1, 2) for row in rows(arguments.rwku / f"neighbor_level{level}.jsonl")]
    benign = benign_sets(arguments.benign)
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        detector = Detector(Encoder(cache_dir=Path(arguments.cache or folder), threads=arguments.threads))
        for half, part in HALVES.items():
            names = subjects[part]
            for forms in arguments.forms:
                tenant = list_of(names, forms)
                await detector.built(tenant)
                notes: dict[str, list[Any]] = defaultdict(list)
                found: dict[str, Any] = {
                    "questions": await measure_questions(detector, tenant, names, questions, notes["missed"]),
                    "others": {},
                }
                sets = {name: [(text, "") for text in texts] for name, texts in benign.items()}
                sets["neighbours"] = [answered(row) for row in neighbours if row["subject"] in names]
                for name, texts in sets.items():
                    found["others"][name] = await measure_others(detector, tenant, names, texts, notes[name])
                found["bars"] = dict(with_bars(found))
                record[f"{half}_{forms}"] = found
                details[f"{half}_{forms}"] = notes
        detector.close()
    return record


def main() -> None:
    """Measure, print JSON, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rwku", type=Path, default=Path("../shared/data/rwku"))
    parser.add_argument("--benign", type=Path, default=Path("../shared/data/benign"))
    parser.add_argument("--forms", nargs="+", choices=("balanced", "strict"), default=["balanced", "strict"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", help="folder for sentence vectors, to skip encoding lists again")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--details", type=Path, help="also write every question missed and every prompt flagged")
    arguments = parser.parse_args()
    details: dict[str, Any] = {}
    text = json.dumps(asyncio.run(run(arguments, details)), indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")
    if arguments.details:
        arguments.details.write_text(json.dumps(details, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
