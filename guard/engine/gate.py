"""The engine's own gate: no request enters the scheduler without a valid ticket.

vLLM calls `EngineCore.preprocess_add_request` for every request before it becomes a `Request` (where the prefix-cache
hashes are computed); raising there is reported to the client as a failed request and the engine goes on. The gate is
installed by the import of `guard.engine.scheduler`, which vLLM imports by name in the engine process and which fails
the start when it cannot be imported: an entry-point plugin would fail open.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from typing import Any

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore

from guard.engine.tickets import VerifiedTickets
from guard.errors import EngineMismatchError, TicketError
from guard.ticket import Ticket, read_key

_MARK = "guard_gate"


def install() -> None:
    """Put the gate in front of `EngineCore.preprocess_add_request`; a second call does nothing.

    Raises ConfigurationError without a ticket key and EngineMismatchError when vLLM has no such method.
    """
    read_key()
    stock = getattr(EngineCore, "preprocess_add_request", None)
    if stock is None:
        raise EngineMismatchError("vLLM's EngineCore has no preprocess_add_request; this version is not supported")
    if getattr(stock, _MARK, False):
        return

    @functools.wraps(stock)
    def preprocess_add_request(self: Any, request: EngineCoreRequest) -> Any:
        self.scheduler.guard_gate.admit(request, time.time())
        return stock(self, request)

    setattr(preprocess_add_request, _MARK, True)
    setattr(EngineCore, "preprocess_add_request", preprocess_add_request)  # noqa: B010 - mypy refuses method assignment
    setattr(EngineCore, "guard_engine_counters", lambda self: self.scheduler.guard_counters())  # noqa: B010


def installed_everywhere() -> bool:
    """Whether every engine class of this process goes through the gate."""
    classes = [EngineCore]
    for known in classes:
        classes.extend(known.__subclasses__())
    return all(getattr(known.preprocess_add_request, _MARK, False) for known in classes)


class RequestGate:
    """The gate of one engine; the scheduler holds it. `key` as in `guard.ticket.read_key`."""

    def __init__(self, key: bytes) -> None:
        self.tickets = VerifiedTickets(key)
        self._counts: Counter[str] = Counter()

    def admit(self, request: EngineCoreRequest, now_s: float) -> Ticket:
        """Verify the ticket of `request` and force its cache salt. Raises TicketError for anything else.

        `now_s` is Unix time in seconds. Only plain token prompts are accepted, because the ticket signs token ids.
        """
        try:
            ticket = self._verified(request, now_s)
        except TicketError:
            self._counts["refused_requests"] += 1
            raise
        # before the request is built: vLLM hashes the salt into the first block
        request.cache_salt = ticket.salt
        self._counts["admitted_requests"] += 1
        return ticket

    def counters(self) -> dict[str, int]:
        """Requests admitted and refused."""
        return {name: self._counts[name] for name in ("admitted_requests", "refused_requests")}

    def _verified(self, request: EngineCoreRequest, now_s: float) -> Ticket:
        params = request.sampling_params
        if params is None or request.pooling_params is not None:
            raise TicketError("only generation requests are served")
        if request.prompt_token_ids is None or request.prompt_embeds is not None:
            raise TicketError("prompts must be token ids, not embeddings")
        if request.resumable:
            raise TicketError("streamed input is not supported: a ticket signs one whole prompt")
        ticket = self.tickets.admit(params, request.prompt_token_ids, now_s)
        if ticket.plan.prompt_length != len(request.prompt_token_ids):
            raise TicketError("guard ticket states another prompt length")
        if not ticket.salt:
            raise TicketError("guard ticket has no cache salt")
        return ticket
