"""The outermost layer, against a small ASGI application in the engine's place: what reaches it, and what comes back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from guard.engine.admission import CURRENT_REQUEST
from guard.errors import RequestRefused
from guard.policy import Target, Tenant, TenantSpec, tenant_of
from guard.service.auth import ROUTES, GuardMiddleware, Limits
from guard.service.errors import content_filter_refusal
from guard.service.rules import RuleContext

OPEN = tenant_of(TenantSpec(name="open"), 1)
ACME = tenant_of(TenantSpec(name="acme", targets=(Target(name="Ada Example"),)), 2)
KEYS = {"key-open": OPEN, "key-acme": ACME}
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
CHAT_PATH = "/v1/chat/completions"


class Directory:
    """Two fixed keys."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.is_ready = True

    def tenant_of_key(self, key: str) -> Tenant | None:
        return KEYS.get(key)

    def serving(self) -> bool:
        return self.is_ready

    def ready(self) -> tuple[bool, dict[str, object]]:
        return self.is_ready, {"status": "ready" if self.is_ready else "not ready"}

    def count_refused(self, reason: str) -> None:
        self.reasons.append(reason)


class Engine:
    """Stands where vLLM's application stands; remembers what it was given."""

    state = None
    routes: tuple[()] = ()

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.bodies: list[Any] = []
        self.refuse: RequestRefused | None = None
        self.status = 200
        self.answer = b'{"ok":true}'
        self.fail = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        message = await receive()
        if message.get("body"):
            self.bodies.append(json.loads(message["body"]))
        headers = [(b"content-type", b"application/json"), (b"x-engine", b"secret")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        context = CURRENT_REQUEST.get()
        if context is not None and self.refuse is not None:
            context.refuse(self.refuse)
        elif context is not None:
            context.admit()
        if self.fail:
            raise ValueError("prompt text in an exception")
        await send({"type": "http.response.body", "body": self.answer, "more_body": False})


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def directory() -> Directory:
    return Directory()


@pytest.fixture
def client(engine: Engine, directory: Directory) -> httpx.AsyncClient:
    app = GuardMiddleware(
        engine,
        directory=directory,
        rules=RuleContext(("demo",)),
        limits=Limits(body_bytes=4096, body_timeout_s=1.0),
        models_body=b'{"object":"list","data":[]}',
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://guard")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


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

    monkeypatch.setattr("guard.service.auth.apply_rules", broken)
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
