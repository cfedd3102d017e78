"""The outermost layer of the HTTP server: pure ASGI, before anything is parsed.

In this order: websockets are denied; only the routes of `ROUTES` exist, matched exactly on the raw path; the API key
decides the tenant and nothing else does; the body is read under a limit, parsed strictly and rebuilt by the rules.
The engine's app sees a fresh request without the client's headers. No byte of a response leaves before the gate has
decided, so a refusal is a plain HTTP error on every route, streamed or not.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from guard.engine.admission import CURRENT_REQUEST, RequestContext
from guard.errors import RequestRefused
from guard.policy import Tenant
from guard.service.door import body as json_body
from guard.service.door.errors import ErrorResponse, error_response, refusal_response, unavailable
from guard.service.door.hold import HeldResponse, Send, send_json
from guard.service.door.refusal_answer import Asked
from guard.service.door.rules import ROUTES as GENERATION_ROUTES
from guard.service.door.rules import RuleContext, apply_rules

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

OPEN_ROUTES = {"/livez": "GET", "/readyz": "GET", "/health": "GET", "/metrics": "GET"}
ROUTES: dict[str, str] = {**OPEN_ROUTES, "/v1/models": "GET", **dict.fromkeys(map(str, GENERATION_ROUTES), "POST")}
SINGLE_HEADERS = (b"authorization", b"host", b"content-length", b"content-type", b"content-encoding")
MAX_AUTHORIZATION_BYTES = 512
_FIELD = re.compile(r"^[a-z0-9_.\[\]]{1,64}$")
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")

log = structlog.get_logger("guard.http")


class Directory(Protocol):
    """Looks tenants up by key and answers the health routes. Implemented by the running service."""

    def tenant_of_key(self, key: str) -> Tenant | None:
        """The tenant that `key` belongs to; None for an unknown or revoked key."""
        ...

    def serving(self) -> bool:
        """Whether generation requests are served; cheap."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """Entered for as long as a request is answered."""
        ...

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether requests are served, with the reasons."""
        ...

    def count_refused(self, reason: str, tenant: Tenant | None) -> None:
        """Count a request that ended before the gate; `tenant` is None before its key is known."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is read before a request is understood."""

    body_bytes: int = 1 << 20
    body_timeout_s: float = 30.0


class GuardMiddleware:
    """ASGI application in front of `app`, vLLM's own, whose `state` and `routes` its launcher asks for."""

    def __init__(
        self, app: Any, *, directory: Directory, rules: RuleContext, limits: Limits, models_body: bytes
    ) -> None:
        self._app = app
        self.state = app.state
        self.routes = app.routes
        self._directory = directory
        self._rules = rules
        self._limits = limits
        self._models_body = models_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = (scope.get("raw_path") or scope["path"].encode(errors="replace")).decode("latin-1")
        request_id = request_id_of(scope)
        headers = (("x-request-id", request_id),)
        method = ROUTES.get(path)
        if method is None or scope["method"] != method:
            status = 404 if method is None else 405
            self._directory.count_refused("route", None)
            extra = (("allow", method),) if method else ()
            await send_json(send, error_response(status), (*headers, *extra))
        elif path in ("/livez", "/readyz"):
            await self._health(path, send)
        elif path in OPEN_ROUTES:
            await self._app({**scope, "headers": [], "query_string": b""}, receive, send)
        else:
            await self._keyed(path, scope, receive, send, request_id)

    async def _health(self, path: str, send: Send) -> None:
        ready, detail = (True, {"status": "alive"}) if path == "/livez" else self._directory.ready()
        await send_json(send, ErrorResponse(200 if ready else 503, json.dumps(detail).encode()), ())

    async def _keyed(self, path: str, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        tenant = None
        try:
            tenant = self._tenant(scope)
            if path == "/v1/models":
                await send_json(send, ErrorResponse(200, self._models_body), (("x-request-id", request_id),))
                return
            raw = await self._read(scope, receive)
            route = next(one for one in GENERATION_ROUTES if one == path)
            ruled = apply_rules(route, json_body.parse(raw), tenant, self._rules)
        except RequestRefused as error:
            self._refused(error, tenant, request_id)
            await send_json(send, refusal_response(error), (("x-request-id", request_id),))
            return
        except Exception as error:  # whatever a body does to the rules, it ends in the catalogue and not in the engine
            log.error("request_not_read", request_id=request_id, error=type(error).__name__)
            self._directory.count_refused("internal_error", tenant)
            await send_json(send, error_response(500), (("x-request-id", request_id),))
            return
        context = RequestContext(request_id, tenant, ruled.prompts, ruled.prompt_field)
        asked = Asked(route, ruled.body, ruled.prompts)
        await self._generate(context, asked, fresh_scope(scope, request_id), receive, send)

    def _refused(self, error: RequestRefused, tenant: Tenant | None, request_id: str) -> None:
        self._directory.count_refused(error.code, tenant)
        if tenant is not None:
            # a client's own field name may be any text, which belongs in no log
            field = error.param if error.param is None or _FIELD.match(error.param) else "(not a usual name)"
            log.info("request_refused", request_id=request_id, tenant=tenant.index, reason=error.code, field=field)

    def _tenant(self, scope: Scope) -> Tenant:
        seen = [name for name, _ in scope["headers"] if name in SINGLE_HEADERS]
        if len(seen) != len(set(seen)):
            raise RequestRefused("A header is given twice.", code="invalid_headers")
        value = next((one for name, one in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = value.partition(b" ")
        tenant = None
        if scheme.lower() == b"bearer" and len(value) <= MAX_AUTHORIZATION_BYTES and key.isascii():
            tenant = self._directory.tenant_of_key(key.decode("ascii"))
        if tenant is None:
            refusal = error_response(401)
            message = json.loads(refusal.body)["error"]["message"]
            raise RequestRefused(message, status=401, code="invalid_api_key")
        if not self._directory.serving():
            raise unavailable()
        return tenant

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        if b"content-encoding" in headers or not json_content(headers.get(b"content-type", b"")):
            raise refused(415)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._limits.body_bytes:
            raise refused(413)
        try:
            return await asyncio.wait_for(self._chunks(receive), self._limits.body_timeout_s)
        except TimeoutError as error:
            raise RequestRefused("The request body did not arrive in time.", status=408, code="timeout") from error

    async def _chunks(self, receive: Receive) -> bytes:
        chunks = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestRefused("The client went away.", code="disconnected")
            chunks += message.get("body", b"")
            more = message.get("more_body", False)
            if len(chunks) > self._limits.body_bytes:
                raise refused(413)
        return bytes(chunks)

    async def _generate(
        self, context: RequestContext, asked: Asked, scope: Scope, receive: Receive, send: Send
    ) -> None:
        body = json_body.serialise(asked.body)
        scope["headers"].append((b"content-length", str(len(body)).encode()))
        sent = False

        async def replay() -> MutableMapping[str, Any]:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        held = HeldResponse(context, asked, send)
        token = CURRENT_REQUEST.set(context)
        try:
            with self._directory.running():
                await self._app(scope, replay, held.send)
        except RequestRefused as error:
            context.refuse(error)
        except Exception as error:  # a response must go out whatever vLLM's route does; the text stays out of the log
            log.error("request_failed", request_id=context.request_id, error=type(error).__name__)
            held.failed = True
        finally:
            CURRENT_REQUEST.reset(token)
        await held.finish()


def refused(status: int) -> RequestRefused:
    """A refusal with the catalogue's message and code for `status`."""
    error = json.loads(error_response(status).body)["error"]
    return RequestRefused(error["message"], status=status, code=error["code"])


def json_content(value: bytes) -> bool:
    """Whether a content type is JSON in UTF-8."""
    kind, _, parameters = value.decode("latin-1").lower().partition(";")
    charset = parameters.strip().replace('"', "")
    return kind.strip() == "application/json" and charset in ("", "charset=utf-8", "charset=utf8")


def request_id_of(scope: Scope) -> str:
    """The client's `X-Request-Id` where it is harmless, else a new one. It is echoed and never given to the engine."""
    value = next((one for name, one in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    return value if _REQUEST_ID.match(value) else uuid.uuid4().hex


def fresh_scope(scope: Scope, request_id: str) -> Scope:
    """The scope for vLLM's app: none of the client's headers or query, an engine-side id of our own."""
    headers = [
        (b"host", b"guard"),
        (b"content-type", b"application/json"),
        (b"x-request-id", uuid.uuid4().hex.encode()),
    ]
    return {**scope, "headers": headers, "query_string": b"", "state": dict(scope.get("state") or {})}
