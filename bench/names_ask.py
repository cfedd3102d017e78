"""Asking a running server for `bench/names.py`: chat completions with a key, many at a time, and their record."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

Message = dict[str, str]
TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `refused`: the error `content_filter`, or an answer whose message is a refusal."""

    text: str
    finish: str
    refused: bool = False


class Asker:
    """Asks with one key, at most `slots` questions at a time. `record`: answers are looked up there first, and kept."""

    def __init__(self, url: str, key: str, model: str, slots: asyncio.Semaphore, record: Record | None = None) -> None:
        self._client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, timeout=TIMEOUT_S, max_retries=2)
        self._model, self._slots, self._record = model, slots, record
        self.asked = 0

    async def ask(self, messages: Sequence[Message], max_tokens: int, draw: int = 0, **fields: Any) -> Reply:
        """The answer to a conversation, greedy where `fields` name no temperature. `draw` counts repeated questions."""
        key = [list(messages), max_tokens, draw, fields]
        if self._record is not None and (known := self._record.find(key)):
            return known
        fields = {"temperature": 0.0} | fields
        async with self._slots:
            self.asked += 1
            reply = await self._post(messages, max_tokens, fields)
        if self._record is not None:
            self._record.add(key, reply)
        return reply

    async def _post(self, messages: Sequence[Message], max_tokens: int, fields: dict[str, Any]) -> Reply:
        try:
            answer = await self._client.chat.completions.create(
                model=self._model, messages=list(messages), max_tokens=max_tokens, **fields  # type: ignore[arg-type]
            )
        except openai.BadRequestError as error:
            if error.code != "content_filter":
                raise
            return Reply("", "content_filter", refused=True)
        choice = answer.choices[0]
        return Reply(choice.message.content or "", choice.finish_reason, refused=bool(choice.message.refusal))

    async def ask_all(self, texts: Sequence[str], max_tokens: int, draw: int = 0, **fields: Any) -> list[Reply]:
        """Answers to single questions, in their order."""
        return list(await asyncio.gather(*(self.ask(user(text), max_tokens, draw, **fields) for text in texts)))


class Record:
    """Unguarded answers in a JSON Lines file: they do not change while the guard does, so one run's serve the next.

    Delete the file after a change of model or of the engine's version.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._found = path, {}
        if path.exists():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self._found = {row["key"]: Reply(row["text"], row["finish"]) for row in rows}

    def find(self, key: Any) -> Reply | None:
        """The answer kept for this request."""
        return self._found.get(_digest(key))

    def add(self, key: Any, reply: Reply) -> None:
        """Keep an answer."""
        self._found[_digest(key)] = reply
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": _digest(key), "text": reply.text, "finish": reply.finish}) + "\n")


def user(text: str) -> list[Message]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def _digest(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
