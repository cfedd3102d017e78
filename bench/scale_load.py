"""Requests of `bench/scale.py`: streamed answers with the time of their first token, batches, steady traffic."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import httpx
from scale_server import MODEL

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Question:
    """A prompt of the owner of a key."""

    key: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What came back: HTTP status, 0 without one; when it was asked; seconds to the first token and to the end."""

    status: int
    asked_s: float
    first_s: float
    whole_s: float


def client(url: str) -> httpx.AsyncClient:
    """HTTP/1.1 with connections that stay open, as many as wanted; the server closes idle ones after five seconds."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=3.0)
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits, trust_env=False)


async def accepted(http: httpx.AsyncClient, key: str) -> None:
    """Wait until the server knows a key. Raises SystemExit when it does not within a minute."""
    headers = {"authorization": f"Bearer {key}"}
    for _ in range(600):
        if (await http.get("/v1/models", headers=headers)).status_code == httpx.codes.OK:
            return
        await asyncio.sleep(0.1)
    raise SystemExit("the server did not take over the keys")


async def ask(http: httpx.AsyncClient, question: Question, max_tokens: int = 8) -> Answer:
    """Ask once, streamed."""
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": question.text}], "temperature": 0,
        "max_tokens": max_tokens, "stream": True,
    }
    began_s, first_s = time.perf_counter(), 0.0
    try:
        headers = {"authorization": f"Bearer {question.key}"}
        async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            async for line in response.aiter_lines():
                if not first_s and response.status_code == httpx.codes.OK and _holds_text(line):
                    first_s = time.perf_counter() - began_s
            status = response.status_code
    except httpx.HTTPError:
        status = 0
    whole_s = time.perf_counter() - began_s
    return Answer(status, began_s, first_s or whole_s, whole_s)


async def ask_all(
    http: httpx.AsyncClient, questions: Sequence[Question], *, at_once: int, max_tokens: int = 8
) -> list[Answer]:
    """Ask all, at most `at_once` at a time; answers in the order of the questions."""
    turns = asyncio.Semaphore(at_once)

    async def one(question: Question) -> Answer:
        async with turns:
            return await ask(http, question, max_tokens)

    return list(await asyncio.gather(*(one(question) for question in questions)))


async def steady(
    http: httpx.AsyncClient, questions: Sequence[Question], rate: float, seconds: float,
    meanwhile: Callable[[], Awaitable[Any]] | None = None,
) -> list[Answer]:
    """Ask `rate` questions a second for `seconds`, whether or not the earlier ones are answered.

    `meanwhile` runs beside them; when it takes longer, the traffic goes on until it has ended.
    """
    beside = asyncio.ensure_future(meanwhile()) if meanwhile is not None else None
    began_s, running = time.perf_counter(), []
    number = 0
    while time.perf_counter() - began_s < seconds or (beside is not None and not beside.done()):
        running.append(asyncio.create_task(ask(http, questions[number % len(questions)])))
        number += 1
        await asyncio.sleep(max(0.0, began_s + number / rate - time.perf_counter()))
    answers = list(await asyncio.gather(*running))
    if beside is not None:
        await beside
    return answers


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def most_at_once(answers: Sequence[Answer]) -> int:
    """How many answers were being written at the same time, at most: between their first token and their end."""
    changes = [(answer.asked_s + answer.first_s, 1) for answer in answers]
    changes += [(answer.asked_s + answer.whole_s, -1) for answer in answers]
    return max(accumulate(change for _, change in sorted(changes)), default=0)


def statuses(answers: Sequence[Answer]) -> dict[str, int]:
    """How many answers had which status; `none` without one."""
    counts = Counter(str(answer.status) if answer.status else "none" for answer in answers)
    return dict(sorted(counts.items()))


def _holds_text(line: str) -> bool:
    if not line.startswith("data: {"):
        return False
    choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
    return bool(choices[0].get("delta", {}).get("content") or choices[0].get("finish_reason"))
