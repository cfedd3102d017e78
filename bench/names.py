"""What a forget-list of names alone is worth on a real model: leak, ignorance, fluency, specificity.

    guard serve MODEL --served-model-name smollm2 --port 8100            # in another terminal
    python bench/names.py --home .guard --model-folder MODEL --subjects 51-100 --out bench/results/names.json

`--home` is the running server's GUARD_HOME: three tenants are published there (see `names_tenants.py`). Without it,
keys of tenants that exist are given: `--open-key`, `--guarded-key` and perhaps `--refusing-key`. Questions are RWKU's
and those of `data/indirect.jsonl`, asked greedily through chat completions; the rules are in `names_verdict.py` and
`guard/demo/admits.py`. OUT holds the figures; every question with its answers and verdicts is written next to it
(`OUT` with the ending `.answers.json`), to be read by eye. Subjects 1 to 50 may choose settings, 51 to 100 are
reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import time
from pathlib import Path
from typing import Any

import yaml
from names_ask import Asker, Record
from names_data import benign, neighbours, questions, subjects
from names_fluency import Judge, perplexities
from names_parts import Keys, ask_benign, ask_neighbours, ask_questions, draw, press, unasked_names
from names_summary import summarise
from names_table import markdown, rows
from names_tenants import publish

from guard.errors import GuardError

DATA = Path(__file__).parents[2] / "shared" / "data"
# a running server takes a change over within a second
PUBLISHED_S = 3.0


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8100")
    parser.add_argument("--model", default="smollm2", help="name under which the server serves the model")
    parser.add_argument("--model-folder", type=Path, help="the same model; without it there are no perplexities")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with rwku/ and benign/")
    parser.add_argument("--home", type=Path, help="GUARD_HOME of the server: publish the tenants there")
    parser.add_argument("--tenants", default="names", help="what the tenants' names begin with, with --home")
    parser.add_argument("--policy", default="{}", help="YAML: fields of the guarded tenant's policy, with --home")
    parser.add_argument("--dossiers", type=Path, help="tenant file whose targets replace names, with --home")
    parser.add_argument("--open-key")
    parser.add_argument("--guarded-key")
    parser.add_argument("--refusing-key")
    parser.add_argument("--subjects", default="1-50", help="first and last, from 1")
    parser.add_argument("--clozes", type=int, help="rows of level 1 a subject (default: all)")
    parser.add_argument("--direct", type=int, help="rows of level 2 a subject (default: all)")
    parser.add_argument("--asked", type=int, default=3, help="questions a subject that are asked known or not")
    parser.add_argument("--neighbours", type=int, default=3, help="neighbour questions a subject")
    parser.add_argument("--benign", type=int, default=160, help="benign prompts whose answers are compared")
    parser.add_argument("--conversations", type=int, default=60)
    parser.add_argument("--draws", type=int, default=0, help="answers at temperature 1 to each known question")
    parser.add_argument("--judged", type=int, default=120, help="questions whose answers' perplexity is counted")
    parser.add_argument("--concurrency", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="file that keeps unguarded answers for the next run")
    parser.add_argument("--skip", nargs="*", default=[], choices=("press", "neighbours", "benign", "fluency"))
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def keys_of(given: argparse.Namespace, names: tuple[str, ...]) -> tuple[str, str, str | None]:
    """Keys from the command line, or those of tenants that are published now."""
    if given.home is None:
        if not (given.open_key and given.guarded_key):
            raise SystemExit("give --home, or --open-key and --guarded-key")
        return given.open_key, given.guarded_key, given.refusing_key
    made = publish(given.home, given.tenants, names, yaml.safe_load(given.policy) or {}, given.dossiers)
    time.sleep(PUBLISHED_S)
    return made


async def measure(given: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Ask everything; the answers by part."""
    slots = asyncio.Semaphore(given.concurrency)
    record = Record(given.record) if given.record else None
    open_key, guarded_key, refusing_key = keys_of(given, names)
    keys = Keys(
        Asker(given.url, open_key, given.model, slots, record), Asker(given.url, guarded_key, given.model, slots),
        Asker(given.url, refusing_key, given.model, slots) if refusing_key else None,
    )
    rwku = given.data / "rwku"
    asked = questions(rwku, names, given.clozes, given.direct, given.seed)
    found: dict[str, Any] = {}
    began = time.monotonic()

    def done(part: str) -> None:
        print(f"{part}: {len(found[part])} rows, {time.monotonic() - began:.0f} s", flush=True)

    found["questions"] = await ask_questions(keys, asked, given.asked, given.seed)
    done("questions")
    if "press" not in given.skip:
        found["pressed"] = await press(keys, found["questions"], given.conversations, given.seed)
        done("pressed")
    if given.draws:
        found["drawn"] = await draw(keys, found["questions"], given.draws)
        done("drawn")
    if "neighbours" not in given.skip:
        found["neighbours"] = await ask_neighbours(keys, neighbours(rwku, names, given.neighbours, given.seed))
        done("neighbours")
    if "benign" not in given.skip:
        prompts = benign(given.data / "benign")
        found["flags"], found["benign"] = await ask_benign(keys, prompts, given.benign, given.seed)
        done("benign")
    parts = ("questions", "neighbours", "benign")
    pairs = [(row["text"], row["guarded"]) for part in parts for row in found.get(part, ())]
    found["unasked_names"] = unasked_names(pairs, names)
    found["unasked_of"] = len(pairs)
    return found


def add_perplexities(found: dict[str, Any], folder: Path, count: int, seed: int) -> None:
    """Give `count` of the sampled questions that name the person the perplexities of both answers."""
    judge = Judge(folder)
    rows = [row for row in found["questions"] if row["sampled"] and row["split"] in ("named", "surname")]
    rows = random.Random(seed).sample(rows, min(count, len(rows)))
    for kind in ("open", "guarded"):
        values = perplexities(judge, [row["text"] for row in rows], [row[kind] for row in rows])
        for at, row in enumerate(rows):
            row[f"{kind}_perplexity"] = {part: of[at] for part, of in values.items()}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON to be read by eye."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print the table, write both files."""
    given = options()
    first, _, last = given.subjects.partition("-")
    names = subjects(given.data / "rwku", int(first), int(last or first))
    began = time.monotonic()
    try:
        found = asyncio.run(measure(given, names))
    except GuardError as error:
        raise SystemExit(str(error)) from error
    answers = given.out.with_suffix(".answers.json")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write(answers, found)
    if given.model_folder and "fluency" not in given.skip:
        add_perplexities(found, given.model_folder, given.judged, given.seed)
        write(answers, found)
    figures = summarise(found)
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "model": given.model, "subjects": given.subjects, "policy": given.policy, "dossiers": bool(given.dossiers),
        "seconds": round(time.monotonic() - began), "figures": figures, "rows": rows(figures),
    }
    write(given.out, report)
    print(markdown(report["rows"]))
    print(f"{report['seconds']} s; every answer is in {answers}")


if __name__ == "__main__":
    main()
