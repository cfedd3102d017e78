"""What the tests put around the outermost layer: two keys, and a small ASGI application in the engine's place."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from guard.engine.admission import CURRENT_REQUEST
from guard.errors import RequestRefused
from guard.policy import Target, Tenant, TenantSpec, tenant_of

OPEN = tenant_of(TenantSpec(name="open"), 1)
ACME = tenant_of(TenantSpec(name="acme", targets=(Target(name="Ada Example"),)), 2)
KEYS = {"key-open": OPEN, "key-acme": ACME}
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
CHAT_PATH = "/v1/chat/completions"


class Directory:
    """Two fixed keys."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.tenants: list[int | None] = []
        self.is_ready = True

    def tenant_of_key(self, key: str) -> Tenant | None:
        return KEYS.get(key)

    def serving(self) -> bool:
        return self.is_ready

    def running(self) -> AbstractContextManager[None]:
        return nullcontext()

    def ready(self) -> tuple[bool, dict[str, object]]:
        return self.is_ready, {"status": "ready" if self.is_ready else "not ready"}

    def count_refused(self, reason: str, tenant: Tenant | None) -> None:
        self.reasons.append(reason)
        self.tenants.append(None if tenant is None else tenant.index)


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


def bearer(key: str) -> dict[str, str]:
    """The header of a request with `key`."""
    return {"authorization": f"Bearer {key}"}
