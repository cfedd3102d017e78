"""What `/readyz` says: whether requests are served, and what is wrong when not.

An unreadable tenant store does not stop the server, which goes on with its last good snapshot; the answer says so. What
fails for one tenant (its list, its detector, a pack) is named by the tenant's index and leaves the others as they are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from guard.service.snapshot import SnapshotWatcher

# far longer than any step of the engine: a stopped engine process never says that it is dead
SILENCE_LIMIT_S = 120.0
# entries of a list in the answer; the counts beside it are whole
MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Shortfalls:
    """What does not work for single tenants: reasons by tenant index, and by the hash of a pack."""

    lists: dict[int, str] = field(default_factory=dict)
    detectors: dict[int, str] = field(default_factory=dict)
    packs: dict[str, str] = field(default_factory=dict)
    detectors_building: int = 0

    @property
    def any(self) -> bool:
        """Whether some tenant has less than its policy says."""
        return bool(self.lists or self.detectors or self.packs)


@dataclass(slots=True)
class Readiness:
    """State of one server; `engine` is vLLM's engine client, `answered_s` when the engine last answered a call.

    `warmed`: the first snapshot was taken over, as far as the start waits for it.
    """

    engine: Any
    watcher: SnapshotWatcher
    self_test_passed: bool = False
    warmed: bool = False
    draining: bool = False
    answered_s: float = field(default_factory=time.monotonic)
    silence_limit_s: float = SILENCE_LIMIT_S

    def ready(self) -> bool:
        """Whether generation requests are served."""
        return self.engine_state() == "alive" and self.self_test_passed and self.warmed and not self.draining

    def engine_answered(self) -> None:
        """The engine has just answered a call."""
        self.answered_s = time.monotonic()

    def engine_state(self) -> str:
        """`dead` when vLLM says so, `silent` when the engine has answered nothing for a long time, else `alive`."""
        if getattr(self.engine, "errored", False):
            return "dead"
        return "silent" if time.monotonic() - self.answered_s > self.silence_limit_s else "alive"

    def report(self, shortfalls: Shortfalls) -> dict[str, object]:
        """The body of `/readyz`."""
        state = self.watcher.state()
        ready = self.ready()
        whole = state.healthy and not shortfalls.any
        return {
            "status": "ready" if ready and whole else "degraded" if ready else "not ready",
            "engine": self.engine_state(),
            "self_test": "passed" if self.self_test_passed else "pending",
            "tenants": "loaded" if self.warmed else "loading",
            "lists_failed": len(shortfalls.lists),
            "lists_failed_by_tenant": _first(shortfalls.lists),
            "detectors_building": shortfalls.detectors_building,
            "detectors_failed": len(shortfalls.detectors),
            "detectors_failed_by_tenant": _first(shortfalls.detectors),
            "packs_not_loaded": len(shortfalls.packs),
            "packs_not_loaded_by_hash": _first({digest[:16]: reason for digest, reason in shortfalls.packs.items()}),
            "draining": self.draining,
            "store": "ok" if state.healthy else "unreadable, serving the last good snapshot",
            "snapshot_revision": state.revision,
            "snapshot_age_s": round(min(state.age_s, 1e9), 1),
        }


def _first(reasons: dict[int, str] | dict[str, str]) -> dict[str, str]:
    return {str(name): reason for name, reason in sorted(reasons.items(), key=lambda item: str(item[0]))[:MOST_NAMED]}
