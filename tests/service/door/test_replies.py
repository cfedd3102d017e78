"""What clients are told: refusals and faults in the words of the catalogue, nothing of the engine's own."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from guard.service.door.errors import content_filter_refusal
from tests.service.door.outermost_layer import CHAT, CHAT_PATH, Directory, Engine, bearer


async def test_a_refusal_after_the_stream_began_is_a_plain_error(client: httpx.AsyncClient, engine: Engine) -> None:
    engine.refuse = content_filter_refusal()
    engine.answer = b"data: half an answer\n\n"
    reply = await client.post(CHAT_PATH, json={**CHAT, "stream": True}, headers=bearer("key-acme"))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "content_filter", "messages")
    assert "half" not in reply.text


async def test_engine_errors_are_replaced_by_the_catalogue(client: httpx.AsyncClient, engine: Engine) -> None:
    engine.answer = json.dumps({"error": {"message": "token ALPHA-7 at /srv/model 0x7f", "param": "prompt"}}).encode()
    for status in (400, 404, 422, 500, 501, 503):
        engine.status = status
        reply = await client.post(CHAT_PATH, json=CHAT, headers=bearer("key-open"))
        assert "ALPHA" not in reply.text and "/srv" not in reply.text
        assert reply.status_code in (400, 404, 500, 503)
        assert "x-engine" not in reply.headers


async def test_an_exception_of_the_engine_is_a_500_without_its_text(client: httpx.AsyncClient, engine: Engine) -> None:
    engine.fail = True
    reply = await client.post(CHAT_PATH, json=CHAT, headers=bearer("key-open"))
    assert reply.status_code == 500
    assert "prompt text" not in reply.text


async def test_a_fault_of_the_rules_is_a_500_of_the_catalogue(
    client: httpx.AsyncClient, engine: Engine, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise TypeError("prompt text in an exception")

    monkeypatch.setattr("guard.service.door.auth.apply_rules", broken)
    reply = await client.post(CHAT_PATH, json=CHAT, headers=bearer("key-acme"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert "prompt text" not in reply.text
    assert directory.reasons == ["internal_error"] and not engine.scopes


@pytest.mark.parametrize("code", [400, 500, "x", None])
async def test_an_error_event_of_a_begun_stream_is_the_catalogues(
    client: httpx.AsyncClient, engine: Engine, code: Any
) -> None:
    error = {"error": {"message": "token ALPHA-7 at /srv/model", "type": "x", "param": None, "code": code}}
    engine.answer = b"data: " + json.dumps(error).encode() + b"\n\n"
    reply = await client.post(CHAT_PATH, json={**CHAT, "stream": True}, headers=bearer("key-acme"))
    event = json.loads(reply.text.removeprefix("data: "))
    assert event["error"]["message"] and "ALPHA" not in reply.text and "/srv" not in reply.text
    assert reply.text.endswith("\n\n")


async def test_answers_that_speak_of_errors_are_left_alone(client: httpx.AsyncClient, engine: Engine) -> None:
    engine.answer = b'data: {"id":"1","choices":[{"delta":{"content":"data: {\\"error\\""}}]}\n\n'
    reply = await client.post(CHAT_PATH, json={**CHAT, "stream": True}, headers=bearer("key-acme"))
    assert reply.content == engine.answer


async def test_flagged_and_unflagged_answers_carry_the_same_headers(client: httpx.AsyncClient, engine: Engine) -> None:
    reply = await client.post(CHAT_PATH, json=CHAT, headers=bearer("key-acme"))
    assert reply.headers["x-guard-action"] == "guarded"
    reply = await client.post(CHAT_PATH, json=CHAT, headers=bearer("key-open"))
    assert reply.headers["x-guard-action"] == "pass"
    assert "x-engine" not in reply.headers


async def test_health_needs_no_key_and_follows_readiness(client: httpx.AsyncClient, directory: Directory) -> None:
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200
    directory.is_ready = False
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/readyz")).status_code == 503
    reply = await client.post(CHAT_PATH, json=CHAT, headers=bearer("key-open"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "guard_unavailable")
    assert reply.headers["retry-after"].isdigit()
