"""A refusal as a complete answer with HTTP 200, in the shape of the route that was asked, streamed or not.

Chat completions carry it as `message.refusal`, responses as a content part of the type `refusal`; completions have no
place for one, so there it is the text. Shapes and the order of events are those of OpenAI's API as vLLM 0.32 writes
them. Usage counts the refused prompt; no token was generated, so the completion counts 0. A request with several
prompts of which one is refused is refused as a whole: every choice of every prompt says so.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from guard.errors import AnsweredRefusal
from guard.service.door.rules import Route

EVENTS = "text/event-stream; charset=utf-8"
_PIECE = re.compile(r"\S+\s*|\s+")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asked for: its route, its body as rebuilt by the rules, and the number of prompts in it."""

    route: Route
    body: Json
    prompts: int = 1

    @property
    def choices(self) -> int:
        """Answers that the request expects."""
        return int(self.body.get("n", 1)) * self.prompts


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response of status 200."""

    content_type: str
    body: bytes


def refusal_answer(asked: Asked, refusal: AnsweredRefusal) -> Answer:
    """The answer that says `refusal.text`."""
    streamed = bool(asked.body.get("stream"))
    if asked.route == "/v1/responses":
        events = list(_response_events(asked, refusal))
        if streamed:
            return Answer(EVENTS, b"".join(f"event: {e['type']}\n".encode() + _event(e) for e in events))
        return _whole(events[-1]["response"])
    write = _chat if asked.route == "/v1/chat/completions" else _completion
    if not streamed:
        return _whole(write(asked, refusal))
    chunks = _chat_chunks if asked.route == "/v1/chat/completions" else _completion_chunks
    return Answer(EVENTS, b"".join(map(_event, chunks(asked, refusal))) + b"data: [DONE]\n\n")


def _chat(asked: Asked, refusal: AnsweredRefusal) -> Json:
    message = {"role": "assistant", "content": None, "refusal": refusal.text}
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": "stop"}
        for index in range(asked.choices)
    ]
    return {**_head(asked, "chatcmpl-", "chat.completion"), "choices": choices, "usage": _usage(refusal)}


def _chat_chunks(asked: Asked, refusal: AnsweredRefusal) -> Iterator[Json]:
    head = _head(asked, "chatcmpl-", "chat.completion.chunk")

    def chunk(index: int, delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**head, "choices": [choice]} | _continuous_usage(asked, refusal)

    for index in range(asked.choices):
        yield chunk(index, {"role": "assistant", "content": None, "refusal": ""})
    for index in range(asked.choices):
        for piece in _pieces(refusal.text):
            yield chunk(index, {"refusal": piece})
        yield chunk(index, {}, "stop")
    yield from _last_usage(asked, refusal, head)


def _completion(asked: Asked, refusal: AnsweredRefusal) -> Json:
    choices = [
        {"index": index, "text": refusal.text, "logprobs": None, "finish_reason": "stop"}
        for index in range(asked.choices)
    ]
    return {**_head(asked, "cmpl-", "text_completion"), "choices": choices, "usage": _usage(refusal)}


def _completion_chunks(asked: Asked, refusal: AnsweredRefusal) -> Iterator[Json]:
    head = _head(asked, "cmpl-", "text_completion")
    pieces = _pieces(refusal.text)
    for index in range(asked.choices):
        for place, piece in enumerate(pieces, 1):
            end = "stop" if place == len(pieces) else None
            choice = {"index": index, "text": piece, "logprobs": None, "finish_reason": end}
            yield {**head, "choices": [choice]} | _continuous_usage(asked, refusal)
    yield from _last_usage(asked, refusal, head)


def _response_events(asked: Asked, refusal: AnsweredRefusal) -> Iterator[Json]:
    item = f"msg_{uuid.uuid4().hex}"
    place = {"item_id": item, "output_index": 0, "content_index": 0}
    part = {"type": "refusal", "refusal": refusal.text}
    message = {"id": item, "type": "message", "role": "assistant", "content": [part], "status": "completed"}
    opened = message | {"content": [], "status": "in_progress"}
    whole = _response(asked)
    events: list[tuple[str, Json]] = [
        ("response.created", {"response": whole}),
        ("response.in_progress", {"response": whole}),
        ("response.output_item.added", {"output_index": 0, "item": opened}),
        ("response.content_part.added", {**place, "part": part | {"refusal": ""}}),
        *(("response.refusal.delta", {**place, "delta": piece}) for piece in _pieces(refusal.text)),
        ("response.refusal.done", {**place, "refusal": refusal.text}),
        ("response.content_part.done", {**place, "part": part}),
        ("response.output_item.done", {"output_index": 0, "item": message}),
    ]
    usage = {
        "input_tokens": refusal.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": refusal.prompt_tokens,
    }
    ended = whole | {"status": "completed", "output": [message], "usage": usage}
    events.append(("response.completed", {"response": ended}))
    for number, (kind, content) in enumerate(events):
        yield {"type": kind, "sequence_number": number, **content}


def _response(asked: Asked) -> Json:
    body = asked.body
    return {
        "id": f"resp_{uuid.uuid4().hex}", "created_at": int(time.time()), "object": "response",
        "model": body.get("model", ""), "status": "in_progress", "output": [], "usage": None,
        "error": None, "incomplete_details": None, "instructions": body.get("instructions"), "metadata": None,
        "parallel_tool_calls": True, "tools": [], "tool_choice": "auto", "temperature": body.get("temperature", 1.0),
        "top_p": body.get("top_p", 1.0), "max_output_tokens": body.get("max_output_tokens"), "background": False,
        "previous_response_id": None, "reasoning": None, "service_tier": "auto", "text": None,
        "truncation": "disabled", "user": None,
    }


def _head(asked: Asked, prefix: str, kind: str) -> Json:
    return {
        "id": prefix + uuid.uuid4().hex, "object": kind, "created": int(time.time()),
        "model": asked.body.get("model", ""),
    }


def _usage(refusal: AnsweredRefusal) -> Json:
    return {
        "prompt_tokens": refusal.prompt_tokens, "completion_tokens": 0, "total_tokens": refusal.prompt_tokens
    }


def _continuous_usage(asked: Asked, refusal: AnsweredRefusal) -> Json:
    options = asked.body.get("stream_options", {})
    both = options.get("include_usage") and options.get("continuous_usage_stats")
    return {"usage": _usage(refusal)} if both else {}


def _last_usage(asked: Asked, refusal: AnsweredRefusal, head: Json) -> Iterator[Json]:
    if asked.body.get("stream_options", {}).get("include_usage"):
        yield {**head, "choices": [], "usage": _usage(refusal)}


def _pieces(text: str) -> list[str]:
    return _PIECE.findall(text) or [text]


def _whole(content: Json) -> Answer:
    return Answer("application/json", json.dumps(content, ensure_ascii=False).encode())


def _event(content: Json) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"
