"""Ask the demo server everything its forget-lists promise, and report the rates.

    make serve                                   # in another terminal
    python bench/bars.py --url http://127.0.0.1:8000 --keys .guard/demo_keys.json

Greedy answers to all questions of the forgotten authors (original and paraphrased wording), to 200 questions
of authors that nobody forgot, and sampled answers searched for forbidden strings. Retain-model values come from
the committed records in guard/demo/records.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import httpx
import yaml

from guard.classifiers.normalize import mask_form
from guard.demo.corpus import author_rows, paraphrases
from guard.demo.evaluate import rouge_recall

CONCURRENCY = 16
RECORDS = Path(__file__).parents[1] / "guard/demo/records"
TENANTS = Path(__file__).parents[1] / "guard/demo/tenants.yaml"


class Client:
    """Sends questions to one server with one tenant's key; at most CONCURRENCY at a time."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=300)
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def chat(self, question: str, **fields: Any) -> tuple[int, list[str], list[str]]:
        """Ask through chat completions; returns status, texts and finish reasons of all choices."""
        body = {"model": "demo", "messages": [{"role": "user", "content": question}], "max_tokens": 160} | fields
        async with self._slots:
            if fields.get("stream"):
                return await self._stream("/v1/chat/completions", body)
            response = await self._http.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            return response.status_code, [], []
        choices = response.json()["choices"]
        return 200, [c["message"]["content"] or "" for c in choices], [c["finish_reason"] for c in choices]

    async def complete(self, question: str, **fields: Any) -> tuple[int, list[str], list[str]]:
        """Ask through completions."""
        body = {"model": "demo", "prompt": f"Question: {question}\nAnswer:", "max_tokens": 160} | fields
        async with self._slots:
            if fields.get("stream"):
                return await self._stream("/v1/completions", body)
            response = await self._http.post("/v1/completions", json=body)
        if response.status_code != 200:
            return response.status_code, [], []
        choices = response.json()["choices"]
        return 200, [c["text"] for c in choices], [c["finish_reason"] for c in choices]

    async def respond(self, question: str, **fields: Any) -> tuple[int, list[str], list[str]]:
        """Ask through responses."""
        body = {"model": "demo", "input": question, "max_output_tokens": 160, "store": False} | fields
        async with self._slots:
            if fields.get("stream"):
                return await self._response_stream(body)
            response = await self._http.post("/v1/responses", json=body)
        if response.status_code != 200:
            return response.status_code, [], []
        parts = [p for item in response.json()["output"] for p in item.get("content") or []]
        return 200, ["".join(p.get("text", "") for p in parts)], [response.json().get("status", "")]

    async def _stream(self, path: str, body: dict[str, Any]) -> tuple[int, list[str], list[str]]:
        texts: dict[int, str] = {}
        reasons: dict[int, str] = {}
        async with self._http.stream("POST", path, json=body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                for choice in json.loads(line[6:]).get("choices", []):
                    delta = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                    texts[choice["index"]] = texts.get(choice["index"], "") + delta
                    if choice.get("finish_reason"):
                        reasons[choice["index"]] = choice["finish_reason"]
            return response.status_code, list(texts.values()), list(reasons.values())

    async def _response_stream(self, body: dict[str, Any]) -> tuple[int, list[str], list[str]]:
        text = ""
        async with self._http.stream("POST", "/v1/responses", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if event.get("type") == "response.output_text.delta":
                        text += event["delta"]
            return response.status_code, [text], []


async def greedy(client: Client, questions: Sequence[str]) -> list[tuple[int, str]]:
    """Greedy chat answers: (status, text) per question."""
    replies = await asyncio.gather(*(client.chat(q, temperature=0) for q in questions))
    return [(status, texts[0] if texts else "") for status, texts, _ in replies]


def recall_of(rows: Sequence[dict[str, str]], replies: Sequence[tuple[int, str]]) -> float:
    """Mean ROUGE-L recall of the replies against the rows' answers."""
    return round(mean(rouge_recall(row["answer"], text) for row, (_, text) in zip(rows, replies, strict=True)), 4)


def retain_recall() -> dict[str, float]:
    """The retain90 model's recall on the questions of authors 190-199, from the committed records."""
    path = RECORDS / "retain90.jsonl"
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [r for r in map(json.loads, lines) if r["split"] == "forget10_perturbed"][200:]
    return {
        "original": round(mean(r["recall"] for r in rows), 4),
        "paraphrased": round(mean(r["paraphrased_recall"] for r in rows), 4),
    }


async def forgetting(opened: Client, acme: Client, answers_out: Path | None) -> dict[str, Any]:
    """Recall of acme's questions with and without the guard, and answers that must not change."""
    rows, reworded = author_rows(190, 199), paraphrases()
    other_rows = author_rows(20, 29)
    questions = [row["question"] for row in rows]
    plain, forgotten = await greedy(opened, questions), await greedy(acme, questions)
    second = [reworded[question] for question in questions]
    plain_second, forgotten_second = await greedy(opened, second), await greedy(acme, second)
    others = [row["question"] for row in other_rows]
    open_others, acme_others = await greedy(opened, others), await greedy(acme, others)
    if answers_out:
        written = [
            {"question": q, "paraphrased_question": p, "open": a[1], "acme": b[1], "acme_paraphrased": c[1]}
            for q, p, a, b, c in zip(questions, second, plain, forgotten, forgotten_second, strict=True)
        ]
        answers_out.write_text("".join(json.dumps(w, ensure_ascii=False) + "\n" for w in written), encoding="utf-8")
    return {
        "open_recall": recall_of(rows, plain),
        "open_recall_paraphrased": recall_of(rows, plain_second),
        "acme_recall": recall_of(rows, forgotten),
        "acme_recall_paraphrased": recall_of(rows, forgotten_second),
        "retain90_recall": retain_recall(),
        "changed_paraphrased": round(mean(a != b for a, b in zip(plain_second, forgotten_second, strict=True)), 4),
        "other_authors_recall_open": recall_of(other_rows, open_others),
        "other_authors_same_bytes": round(mean(a == b for a, b in zip(open_others, acme_others, strict=True)), 4),
    }


async def refusing(harbor: Client) -> dict[str, float]:
    """Share of refused questions of forgotten and of other authors."""
    own = [row["question"] for row in author_rows(0, 9)]
    other = [row["question"] for row in author_rows(20, 29)]
    own_replies, other_replies = await greedy(harbor, own), await greedy(harbor, other)
    return {
        "refused_own": round(mean(status == 400 for status, _ in own_replies), 4),
        "refused_others": round(mean(status == 400 for status, _ in other_replies), 4),
    }


async def sampling(client: Client, samples: int) -> dict[str, Any]:
    """Search sampled answers (T=1) of every route, streamed and not, n=1 and n=4, for forbidden strings."""
    tenants = yaml.safe_load(TENANTS.read_text(encoding="utf-8"))["tenants"]
    targets = next(t for t in tenants if t["name"] == "acme")["targets"]
    forbidden = [(text, mask_form(text)) for target in targets for text in target["forbid"]]
    questions = [row["question"] for row in author_rows(190, 199)]
    ways: list[tuple[str, Any, dict[str, Any]]] = [
        ("chat", client.chat, {}),
        ("chat n=4", client.chat, {"n": 4}),
        ("chat stream", client.chat, {"stream": True}),
        ("chat stream n=4", client.chat, {"stream": True, "n": 4}),
        ("completions", client.complete, {}),
        ("completions n=4", client.complete, {"n": 4}),
        ("completions stream n=4", client.complete, {"stream": True, "n": 4}),
        ("responses", client.respond, {}),
        ("responses stream", client.respond, {"stream": True}),
    ]
    result: dict[str, Any] = {"answers": 0, "hits": 0, "echoes": 0, "content_filter": 0, "errors": 0, "ways": {}}
    for number, (name, ask, fields) in enumerate(ways):
        wanted = samples // len(ways) + 1
        calls = -(-wanted // int(fields.get("n", 1)))
        asked = [questions[(number * 37 + i) % len(questions)] for i in range(calls)]
        replies = await asyncio.gather(*(ask(q, temperature=1.0, **fields) for q in asked))
        count = 0
        for question, (status, texts, reasons) in zip(asked, replies, strict=True):
            result["errors"] += status != 200
            result["content_filter"] += sum(reason in ("content_filter", "incomplete") for reason in reasons)
            count += len(texts)
            typed = f" {mask_form(question)}"
            for text in texts:
                found = [f for raw, f in forbidden if raw in text or f" {f}" in f" {mask_form(text)}"]
                result["echoes"] += sum(f" {f}" in typed for f in found)
                result["hits"] += sum(f" {f}" not in typed for f in found)
        result["ways"][name] = count
        result["answers"] += count
    return result


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts that were asked for."""
    keys = json.loads(arguments.keys.read_text(encoding="utf-8"))
    clients = {name: Client(arguments.url, key) for name, key in keys.items()}
    report: dict[str, Any] = {}
    started = time.time()
    if "forget" in arguments.parts:
        report["forget"] = await forgetting(clients["open"], clients["acme"], arguments.answers)
    if "refuse" in arguments.parts:
        report["refuse"] = await refusing(clients["harbor"])
    if "sample" in arguments.parts:
        report["sample"] = await sampling(clients[arguments.sample_tenant], arguments.samples)
    report["seconds"] = round(time.time() - started, 1)
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--keys", type=Path, default=Path(".guard/demo_keys.json"))
    parser.add_argument("--parts", nargs="*", default=["forget", "refuse", "sample"])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--sample-tenant", default="acme")
    parser.add_argument("--answers", type=Path, help="write the greedy answers here (JSON Lines)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report = asyncio.run(run(arguments))
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
