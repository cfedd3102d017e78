"""The outermost layer: which routes, keys and bodies come through to the engine, and what it is given."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from guard.service.door.auth import ROUTES, GuardMiddleware, Limits
from guard.service.door.rules import RuleContext
from tests.service.door.outermost_layer import ACME, CHAT, CHAT_PATH, Directory, Engine, bearer

PATHS = [
    "/",
    "/invocations",
    "/v1/chat/completions/batch",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/generative_scoring",
    "/v1/systemone",
    "/v1/responses/resp_1",
    "/v1/responses/resp_1/cancel",
    "/tokenize",
    "/detokenize",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/responses/render",
    "/inference/v1/generate",
    "/inference/v1/abort_requests",
    "/abort_requests",
    "/v1/embeddings",
    "/v2/embed",
    "/pooling",
    "/classify",
    "/score",
    "/rerank",
    "/v1/rerank",
    "/v1/audio/speech",
    "/v1/realtime",
    "/collective_rpc",
    "/sleep",
    "/wake_up",
    "/reset_prefix_cache",
    "/server_info",
    "/pause",
    "/update_weights",
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
    "/start_profile",
    "/v1/load_lora_adapter",
    "/adapters",
    "/load",
    "/version",
    "/kv_event_sources",
    "/openapi.json",
    "/docs",
    "/redoc",
    "/ping",
    "/metrics/",
    "/v1/chat/completions/",
    "//v1/chat/completions",
    "/V1/chat/completions",
    "/v1/chat%2Fcompletions",
    "/%76%31/chat/completions",
    "/v1/chat/completions;x",
    "/v1/chat/completions%20",
    "/v1/chat/completions%00",
    "/v1\\models",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_everything_off_the_list_is_404_with_and_without_a_key(
    client: httpx.AsyncClient, engine: Engine, path: str, method: str
) -> None:
    url = httpx.URL("http://guard").copy_with(raw_path=path.encode())
    for headers in ({}, bearer("key-open")):
        reply = await client.send(httpx.Request(method, url, headers=headers, json=CHAT if method == "POST" else None))
        assert reply.status_code == 404
        assert reply.json()["error"]["code"] == "not_found"
    assert not engine.scopes


@pytest.mark.parametrize("path", sorted(ROUTES))
@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"])
async def test_other_methods_are_405(client: httpx.AsyncClient, engine: Engine, path: str, method: str) -> None:
    reply = await client.request(method, path, headers=bearer("key-open"))
    assert (reply.status_code, reply.headers["allow"]) == (405, ROUTES[path])
    assert not engine.scopes


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer nope",
        "Basic a2V5LW9wZW4=",
        "key-open",
        "Bearer  key-open",
        "Bearer key-open ",
        "Bearer key-open,key-acme",
        "Bearer " + "a" * 100_000,
    ],
)
async def test_a_missing_or_wrong_key_is_401(client: httpx.AsyncClient, engine: Engine, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    for path in (CHAT_PATH, "/v1/models"):
        reply = await client.request(ROUTES[path], path, headers=headers, json=CHAT)
        assert reply.status_code == 401
        assert reply.json()["error"]["code"] == "invalid_api_key"
    assert not engine.scopes


async def test_keys_count_only_in_the_header(client: httpx.AsyncClient) -> None:
    reply = await client.post(
        CHAT_PATH + "?api_key=key-open", json=CHAT, headers={"cookie": "authorization=Bearer key-open"}
    )
    assert reply.status_code == 401


async def test_an_adapter_header_opens_no_route(client: httpx.AsyncClient, engine: Engine) -> None:
    header = {"x-amzn-sagemaker-adapter-identifier": "other"}
    for headers in (header, {**bearer("key-open"), **header}):
        assert (await client.post("/invocations", json=CHAT, headers=headers)).status_code == 404
    assert not engine.scopes
    await client.post(CHAT_PATH, json=CHAT, headers={**bearer("key-open"), **header})
    assert engine.bodies[0]["model"] == "demo"
    assert not any(b"sagemaker" in name for name, _ in engine.scopes[0]["headers"])


async def test_the_tenant_comes_from_the_key_alone(client: httpx.AsyncClient, engine: Engine) -> None:
    forged = {
        "x-tenant-id": "open",
        "x-guard-tenant": "open",
        "x-request-id": "mine",
        "x-vllm-priority": "-9",
        "x-data-parallel-rank": "3",
        "x-session-id": "s",
        "x-forwarded-for": "10.0.0.1",
        "cookie": "a=b",
    }
    reply = await client.post(CHAT_PATH, json={**CHAT, "user": "open"}, headers={**bearer("key-acme"), **forged})
    assert reply.headers["x-guard-policy-version"] == ACME.policy_version
    assert reply.headers["x-request-id"] == "mine"
    names = {name for name, _ in engine.scopes[0]["headers"]}
    assert names == {b"host", b"content-type", b"content-length", b"x-request-id"}
    assert (b"x-request-id", b"mine") not in engine.scopes[0]["headers"]
    assert "user" not in engine.bodies[0]


async def test_a_doubled_authorization_header_is_refused(client: httpx.AsyncClient, engine: Engine) -> None:
    headers = [("authorization", "Bearer key-open"), ("authorization", "Bearer key-acme")]
    reply = await client.post(CHAT_PATH, json=CHAT, headers=headers)
    assert reply.status_code == 400
    assert not engine.scopes


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "text/plain"}, b"{}", 415),
        ({"content-type": "application/json; charset=utf-16"}, b"{}", 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, b"{}", 415),
        ({"content-type": "application/x-www-form-urlencoded"}, b"a=b", 415),
        ({"content-type": "application/json"}, b" " * 5000, 413),
        ({"content-type": "application/json"}, b'{"model":"a","model":"demo"}', 400),
    ],
)
async def test_bodies_are_checked_before_the_engine(
    client: httpx.AsyncClient, engine: Engine, headers: dict[str, str], body: bytes, status: int
) -> None:
    reply = await client.post(CHAT_PATH, content=body, headers={**bearer("key-open"), **headers})
    assert reply.status_code == status
    assert set(reply.json()["error"]) >= {"message", "type", "param", "code"}
    assert not engine.scopes


async def test_a_streamed_body_is_cut_off_at_the_limit(client: httpx.AsyncClient, engine: Engine) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 1000

    headers = {**bearer("key-open"), "content-type": "application/json"}
    reply = await client.post(CHAT_PATH, content=endless(), headers=headers)
    assert reply.status_code == 413
    assert not engine.scopes


async def test_nothing_is_read_before_the_key_is_known(directory: Directory, engine: Engine) -> None:
    app = GuardMiddleware(engine, directory=directory, rules=RuleContext(("demo",)), limits=Limits(), models_body=b"{}")
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT_PATH, "raw_path": CHAT_PATH.encode(), "headers": []}
    await app(scope, receive, send)
    assert sent[0]["status"] == 401


async def test_websockets_are_closed(engine: Engine, directory: Directory) -> None:
    app = GuardMiddleware(engine, directory=directory, rules=RuleContext(("demo",)), limits=Limits(), models_body=b"")
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0)
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert not engine.scopes


async def test_a_refused_field_leaves_a_line_with_field_and_tenant(
    client: httpx.AsyncClient, directory: Directory
) -> None:
    with capture_logs() as lines:
        reply = await client.post(CHAT_PATH, json={**CHAT, "logit_bias": {"5": 1}}, headers=bearer("key-acme"))
    assert reply.status_code == 400
    told = [line for line in lines if line["event"] == "request_refused"]
    assert [(line["tenant"], line["field"]) for line in told] == [(ACME.index, "logit_bias")]
    assert directory.tenants == [ACME.index]


async def test_a_field_that_is_named_like_a_text_reaches_no_log(client: httpx.AsyncClient) -> None:
    name = "Who is Ada Example?"
    with capture_logs() as lines:
        reply = await client.post(CHAT_PATH, json={**CHAT, name: 1}, headers=bearer("key-acme"))
    assert reply.status_code == 400
    assert lines and "Ada" not in str(lines)


async def test_without_a_key_no_tenant_is_counted(client: httpx.AsyncClient, directory: Directory) -> None:
    with capture_logs() as lines:
        await client.post(CHAT_PATH, json=CHAT, headers=bearer("wrong"))
    assert directory.tenants == [None]
    assert not [line for line in lines if line["event"] == "request_refused"]
