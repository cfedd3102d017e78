"""Holds a response back until the gate has decided, and rewrites errors of the engine.

vLLM starts a streamed response before the first token; a refusal would come too late for an HTTP status. So messages
wait until all generations of the request are admitted. Error responses, and error events of a
stream that has begun, are replaced by the catalogue's.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from guard.engine.admission import RequestContext
from guard.errors import AnsweredRefusal
from guard.service.door.errors import ErrorResponse, engine_error, error_response, refusal_response
from guard.service.door.refusal_answer import Asked, refusal_answer

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
KEPT_HEADERS = frozenset({b"content-type", b"content-length", b"cache-control", b"retry-after", b"x-accel-buffering"})
MAX_ERROR_BYTES = 1 << 16
EVENT = b"data: "


class HeldResponse:
    """The `send` of one request."""

    def __init__(self, context: RequestContext, asked: Asked, send: Send) -> None:
        self._context = context
        self._asked = asked
        self._send = send
        self._waiting: list[MutableMapping[str, Any]] = []
        self._status = 200
        self._started = False
        self._ended = False
        self.failed = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Pass a message on, or keep it until the request is decided."""
        if self._ended:
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if self._started:
            self._ended = last
            await self._send(without_engine_text(message))
            return
        self._waiting.append(message)
        if self._status < 400 and self._context.decided.is_set() and self._context.refusal is None:
            await self._flush()
            self._ended = last
        elif last:
            await self.finish()

    async def finish(self) -> None:
        """End the response; called once more when the app has returned."""
        if self._ended:
            return
        self._ended = True
        context = self._context
        if self._started:
            # headers are out: close the stream without an end marker, so that the client sees a broken answer
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        elif isinstance(context.refusal, AnsweredRefusal):
            answer = refusal_answer(self._asked, context.refusal)
            await send_whole(self._send, 200, answer.content_type, answer.body, self._headers())
        elif context.refusal is not None:
            await send_json(self._send, refusal_response(context.refusal), self._headers())
        elif self.failed or not self._waiting:
            await send_json(self._send, error_response(500), self._headers())
        elif self._status >= 400:
            body = b"".join(message.get("body", b"") for message in self._waiting)[:MAX_ERROR_BYTES]
            await send_json(self._send, engine_error(self._status, body), self._headers())
        else:
            await self._flush()

    async def _flush(self) -> None:
        self._started = True
        for message in self._waiting:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.lower() in KEPT_HEADERS]
                own = [(name.encode(), value.encode()) for name, value in self._headers()]
                message = {**message, "headers": kept + own}
            await self._send(without_engine_text(message))
        self._waiting.clear()

    def _headers(self) -> tuple[tuple[str, str], ...]:
        # the same for a flagged and an unflagged request: the header must not tell what a prompt touched
        tenant = self._context.tenant
        action = "guarded" if tenant.guarded else "pass"
        return (
            ("x-request-id", self._context.request_id),
            ("x-guard-action", action),
            ("x-guard-policy-version", tenant.policy_version),
        )


def without_engine_text(message: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """`message`, unless it is an error event of the engine (no answer begins like one): then the catalogue's."""
    body: bytes = message.get("body", b"")
    if not body.startswith(EVENT + b'{"error"'):
        return message
    event = body[len(EVENT) :].split(b"\n", 1)[0]
    try:
        status = int(json.loads(event)["error"]["code"])
    except (ValueError, TypeError, KeyError):
        status = 500
    return {**message, "body": EVENT + engine_error(status if status >= 400 else 500, event).body + b"\n\n"}


async def send_json(send: Send, response: ErrorResponse, headers: Iterable[tuple[str, str]]) -> None:
    """Send a whole JSON response."""
    await send_whole(send, response.status, "application/json", response.body, (*response.headers, *headers))


async def send_whole(
    send: Send, status: int, content_type: str, body: bytes, headers: Iterable[tuple[str, str]]
) -> None:
    """Send a response that is known as a whole."""
    pairs = [("content-type", content_type), ("content-length", str(len(body)))]
    encoded = [(name.encode(), value.encode()) for name, value in (*pairs, *headers)]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})
