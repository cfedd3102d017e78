"""Tickets verified once in each process; the gate, scheduler, router and mask of that process share the result."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from guard.errors import TicketError
from guard.ticket import EXTRA_ARG, Ticket, check, verify

# more than requests can wait in one engine and have their ticket read again soon
TICKETS_KEPT = 8192


class VerifiedTickets:
    """Verified tickets by their text, the most recent kept. A forged text never equals a kept one.

    `key` as in `guard.ticket.read_key`. Safe to use from several threads: vLLM verifies requests in its input thread
    and schedules them in another.
    """

    def __init__(self, key: bytes, kept: int = TICKETS_KEPT) -> None:
        self._key, self._kept = key, kept
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Ticket] = OrderedDict()

    def admit(self, params: Any, token_ids: Sequence[int], now_s: float) -> Ticket:
        """The ticket of sampling `params` for the prompt `token_ids` at `now_s` (Unix seconds).

        Raises TicketError when there is none, or it is forged, expired or for another prompt.
        """
        ticket = self.of(params)
        check(ticket, token_ids=token_ids, now_s=now_s)
        return ticket

    def of(self, params: Any) -> Ticket:
        """The ticket of a request that the engine's gate has admitted; prompt and expiry were checked there.

        Raises TicketError when there is none or its signature is wrong.
        """
        extra = params.extra_args if params is not None else None
        text = (extra or {}).get(EXTRA_ARG)
        if not isinstance(text, str):
            raise TicketError("request has no guard ticket")
        with self._lock:
            ticket = self._known.get(text)
            if ticket is not None:
                self._known.move_to_end(text)
                return ticket
        ticket = verify(text, self._key, token_ids=None, now_s=None)
        with self._lock:
            self._known[text] = ticket
            if len(self._known) > self._kept:
                self._known.popitem(last=False)
        return ticket
