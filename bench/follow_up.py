"""Which second turns of a conversation are taken for follow-ups of the first, which names a person.

    python -m bench.follow_up --data ../shared/data --out bench/results/follow_up.json [--encoder FOLDER]

First turns: questions of RWKU (levels 1 and 2) that name a person in full. Second turns that go on about the person:
other questions about them with a pronoun for the name, or with "the" for the possessive; and fixed wordings. Second
turns about something else: MT-bench, Vicuna, XSTest's safe prompts, RWKU's questions about the neighbours of other
people, and fixed wordings. Persons 1 to 50 and the wordings under `choose` chose the word lists; 51 to 100 and the
wordings under `report` are reported. Of MT-bench's own second turns, which nobody wrote for this purpose, the odd ones
are reported. "dropped" leaves many questions that name something else and can be answered as they stand. RWKU: Jin et
al. 2024.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from guard.classifiers.encoder import Encoder
from guard.classifiers.follow_up import Conversation
from guard.classifiers.spans import Turn

ANSWER = "I have no information on that."
WORDINGS = Path(__file__).with_name("follow_up_wordings.yaml")
_HALF = {"choose": 0, "report": 1}
_BEFORE_SUBJECT = re.compile(
    r"(?:^|\b(?:did|does|do|was|is|has|had|that|which|when|where|after|before|while|and))\s*$", re.IGNORECASE
)


@dataclass(frozen=True)
class Person:
    """A person of RWKU with the questions that name them in full."""

    name: str
    questions: tuple[str, ...]
    pronouns: tuple[str, str, str]


Case = tuple[Person, str, str]


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def people(data: Path) -> list[Person]:
    """The first hundred persons of RWKU in order."""
    questions: dict[str, list[str]] = {}
    for level in (1, 2):
        for row in rows(data / f"rwku/forget_level{level}.jsonl"):
            questions.setdefault(row["subject"], []).append(row["query"])
    found = []
    for name, asked in list(questions.items())[:100]:
        words = " ".join(asked).lower().split()
        female = sum(word in ("she", "her") for word in words) > sum(word in ("he", "his", "him") for word in words)
        pronouns = ("she", "her", "her") if female else ("he", "his", "him")
        found.append(Person(name, tuple(question for question in asked if name in question), pronouns))
    return found


def with_pronoun(person: Person, question: str) -> str:
    """The question with pronouns for the name."""
    subject, possessive, other = person.pronouns
    text = re.sub(re.escape(person.name) + r"['’]s?(?=\s)", possessive, question)
    while person.name in text:
        before, _, after = text.partition(person.name)
        text = before + (subject if _BEFORE_SUBJECT.search(before) else other) + after
    return text[0].upper() + text[1:]


def without_name(person: Person, question: str) -> str | None:
    """The question with "the" for the possessive; None where it has none."""
    text = re.sub(re.escape(person.name) + r"['’]s?(?=\s)", "the", question)
    return text[0].upper() + text[1:] if text != question and person.name not in text else None


def touches(name: str, first: str, second: str, similarity: float | None = None) -> bool:
    """Whether `second` is judged to go on about what `first` named."""
    text = "\n".join((first, ANSWER, second))
    answer = len(first) + 1
    last = answer + len(ANSWER) + 1
    turns = (Turn("user", 0, answer - 1), Turn("assistant", answer, last - 1), Turn("user", last, len(text)))
    start = first.index(name)
    return Conversation(text, turns).touches([(start, start + len(name))], similarity)


def pairs(data: Path, half: str) -> dict[str, list[Case]]:
    """By set: person, first turn and second turn."""
    everybody = people(data)
    group = everybody[:50] if half == "choose" else everybody[50:]
    names = {person.name for person in group}
    random.seed(0)
    wordings = yaml.safe_load(WORDINGS.read_text(encoding="utf-8"))[half]
    sets: dict[str, list[Case]] = {"pronoun": [], "dropped": []}
    for person in group:
        for question in person.questions:
            first = random.choice(person.questions)
            if first != question:
                sets["pronoun"].append((person, first, with_pronoun(person, question)))
                dropped = without_name(person, question)
                sets["dropped"] += [(person, first, dropped)] if dropped else []

    def after_any(texts: Iterable[str]) -> list[Case]:
        found = []
        for text in texts:
            who = random.choice(group)
            found.append((who, random.choice(who.questions), text))
        return found

    for key, texts in wordings.items():
        sets[key] = after_any(texts)
    bench = data / "benign"
    mt_bench = [row["turns"] for row in rows(bench / "mt_bench_question.jsonl")]
    sets["mt_bench_second"] = after_any(turns[1] for turns in mt_bench[_HALF[half] :: 2])
    sets["mt_bench"] = after_any(turns[0] for turns in mt_bench)
    sets["vicuna"] = after_any(row["turns"][0] for row in rows(bench / "vicuna_bench_question.jsonl"))
    with (bench / "xstest_prompts.csv").open(encoding="utf-8", newline="") as file:
        sets["xstest_safe"] = after_any(row["prompt"] for row in csv.DictReader(file) if row["label"] == "safe")
    for level in (1, 2):
        found = rows(data / f"rwku/neighbor_level{level}.jsonl")
        sets[f"neighbours_level{level}"] = after_any(row["query"] for row in found if row["subject"] in names)
    return sets


def rates(sets: dict[str, list[Case]], encoder: Encoder | None) -> dict[str, dict[str, float]]:
    """Share of second turns taken for follow-ups, by set; with similarities where there is an encoder."""
    found = {}
    for key, cases in sets.items():
        hits = [touches(person.name, first, second) for person, first, second in cases]
        found[key] = {"turns": len(cases), "words": round(sum(hits) / len(hits), 4)}
        if encoder is not None:
            left = [case for case, hit in zip(cases, hits, strict=True) if not hit]
            close = [
                touches(person.name, first, second, cosine)
                for (person, first, second), cosine in zip(left, cosines(encoder, left), strict=True)
            ]
            found[key]["words_and_similarity"] = round((sum(hits) + sum(close)) / len(hits), 4)
    return found


def cosines(encoder: Encoder, cases: Sequence[Case]) -> list[float]:
    """Cosine of first and second turn."""
    if not cases:
        return []
    first = np.asarray(encoder.encode([case[1] for case in cases]))
    second = np.asarray(encoder.encode([case[2] for case in cases]))
    return [float(value) for value in (first * second).sum(1)]


def cost_ms(cases: Sequence[Case]) -> float:
    """Median time of one judgement."""
    times = []
    for person, first, second in cases[:500]:
        begin = time.perf_counter()
        touches(person.name, first, second)
        times.append(time.perf_counter() - begin)
    return round(1e3 * float(np.median(times)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--encoder", help="`auto` or the name of a sentence encoder: measure with similarities as well")
    parser.add_argument("--show", metavar="SET", help="print what is judged otherwise than most of this set, and stop")
    parser.add_argument("--half", choices=tuple(_HALF), default="choose", help="for --show")
    arguments = parser.parse_args()
    if arguments.show:
        cases = pairs(arguments.data, arguments.half)[arguments.show]
        judged = [touches(person.name, first, second) for person, first, second in cases]
        rare = sum(judged) < len(judged) / 2
        print(*[case[2] for case, hit in zip(cases, judged, strict=True) if hit == rare], sep="\n")
        return
    sets = {half: pairs(arguments.data, half) for half in _HALF}
    encoder = Encoder(arguments.encoder) if arguments.encoder else None
    result: dict[str, Any] = {half: rates(sets[half], encoder) for half in _HALF}
    result["median_ms"] = cost_ms(sets["report"]["neighbours_level2"])
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
