"""The ticket: a plan signed for one prompt, carried to the engine in `SamplingParams.extra_args["guard"]`.

Form: base64url(JSON body) "." hex HMAC-SHA256(key, base64url body). The body holds the plan, the cache salt, the
SHA-256 of the prompt token ids and the expiry. Only the guard's processes know the key (`GUARD_TICKET_KEY`, made at
start).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import struct
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from guard.errors import ConfigurationError, TicketError
from guard.plan import Plan

EXTRA_ARG = "guard"
KEY_VARIABLE = "GUARD_TICKET_KEY"
LIFETIME_S = 3600.0


class Ticket(BaseModel):
    """A verified ticket. `expires_s` is Unix time in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: Plan
    salt: str
    prompt_sha256: str
    expires_s: float


def create_key() -> str:
    """Make a fresh key and put it into the environment, where the engine's processes inherit it."""
    key = secrets.token_hex(32)
    os.environ[KEY_VARIABLE] = key
    return key


def read_key() -> bytes:
    """The key of this server. Raises ConfigurationError when the process was not started by the guard."""
    key = os.environ.get(KEY_VARIABLE, "")
    if len(key) < 64:
        raise ConfigurationError(f"{KEY_VARIABLE} is not set; start the engine with `guard serve`")
    return key.encode()


def prompt_sha256(token_ids: Sequence[int]) -> str:
    """Hex SHA-256 of prompt token ids packed as little-endian int32."""
    return hashlib.sha256(struct.pack(f"<{len(token_ids)}i", *token_ids)).hexdigest()


def cache_salt(tenant: str, plan: Plan, key: bytes, user_salt: str = "") -> str:
    """Prefix-cache salt (48 hex characters): keyed, so that no tenant can compute or probe another tenant's.

    It covers tenant, policy version and the whole plan, because cached blocks of a corrupted prompt are corrupted.
    """
    message = "\x1f".join((tenant, plan.policy_version, plan.digest(), user_salt))
    return hmac.new(key, b"salt\x1f" + message.encode(), hashlib.sha256).hexdigest()[:48]


def sign(plan: Plan, salt: str, token_ids: Sequence[int], key: bytes, *, now_s: float) -> str:
    """Sign `plan` for the prompt `token_ids`; the ticket is valid for an hour from `now_s` (Unix seconds)."""
    ticket = Ticket(
        plan=plan, salt=salt, prompt_sha256=prompt_sha256(token_ids), expires_s=now_s + LIFETIME_S
    )
    body = base64.urlsafe_b64encode(ticket.model_dump_json().encode()).decode()
    return f"{body}.{_mac(body, key)}"


def verify(text: Any, key: bytes, *, token_ids: Sequence[int] | None, now_s: float | None) -> Ticket:
    """Check signature, prompt and expiry and return the ticket; None skips the prompt or expiry check.

    Raises TicketError for anything that is not a valid ticket.
    """
    if not isinstance(text, str) or text.count(".") != 1:
        raise TicketError("request has no guard ticket")
    body, mac = text.split(".")
    # characters outside ASCII are in no ticket, and some cannot be encoded
    if not text.isascii() or not hmac.compare_digest(mac, _mac(body, key)):
        raise TicketError("guard ticket has a wrong signature")
    try:
        ticket = Ticket.model_validate_json(base64.urlsafe_b64decode(body))
    except (ValueError, ValidationError) as error:
        raise TicketError("guard ticket cannot be read") from error
    check(ticket, token_ids=token_ids, now_s=now_s)
    return ticket


def check(ticket: Ticket, *, token_ids: Sequence[int] | None, now_s: float | None) -> None:
    """Raise TicketError when a verified ticket has expired or was made for another prompt; None skips a check."""
    if now_s is not None and now_s > ticket.expires_s:
        raise TicketError("guard ticket has expired")
    if token_ids is not None and prompt_sha256(token_ids) != ticket.prompt_sha256:
        raise TicketError("guard ticket was made for another prompt")


def _mac(body: str, key: bytes) -> str:
    return hmac.new(key, b"ticket\x1f" + body.encode(), hashlib.sha256).hexdigest()
