"""Default requests of every route, two tenants, and the rules applied to them."""

from __future__ import annotations

from typing import Any

from guard.policy import Target, Tenant, TenantSpec, tenant_of
from guard.service.door.rules import RuleContext, apply_rules

CONTEXT = RuleContext(("demo",), ("<|user|>", "<|assistant|>", "<|end|>"))
OPEN = tenant_of(TenantSpec(name="open"), 1)
GUARDED = tenant_of(TenantSpec(name="acme", targets=(Target(name="Ada Example"),)), 2)
CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Who is Ada?"}]}
COMPLETION: dict[str, Any] = {"model": "demo", "prompt": "Ada was"}
RESPONSE: dict[str, Any] = {"model": "demo", "input": "Who is Ada?"}
BODIES = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION, "/v1/responses": RESPONSE}


def ruled(route: Any, tenant: Tenant = GUARDED, **changes: Any) -> dict[str, Any]:
    """The rebuilt body of a default request with `changes`."""
    return apply_rules(route, {**BODIES[route], **changes}, tenant, CONTEXT).body
