"""Log lines for prompts without a verdict: one at once, then at most one every few seconds for each tenant."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

PAUSE_S = 10.0
# tenants remembered; who is forgotten is only logged a line earlier
TENANTS_KEPT = 1024

log = structlog.get_logger("guard.gate")


@dataclass(slots=True)
class _Seen:
    logged_s: float
    since: int = 0


class UnknownVerdicts:
    """Counts for each tenant what was not logged. `now_s` is a monotonic clock."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._seen: dict[int, _Seen] = {}

    def report(self, tenant: int, reason: str, request_id: str, *, closed: bool) -> None:
        """A prompt of `tenant` (its index) has no verdict; `closed` says that it was refused."""
        now_s = self._now_s()
        seen = self._seen.get(tenant)
        if seen is not None and now_s - seen.logged_s < PAUSE_S:
            seen.since += 1
            return
        log.warning(
            "no_verdict", tenant=tenant, reason=reason or "error", request_id=request_id, refused=closed,
            more_since_last_line=seen.since if seen is not None else 0,
        )
        self._seen.pop(tenant, None)
        self._seen[tenant] = _Seen(now_s)
        if len(self._seen) > TENANTS_KEPT:
            del self._seen[next(iter(self._seen))]
