"""What `/readyz` says: whether requests are served, and what is wrong when not.

An unreadable tenant store does not stop the server, which goes on with its last good snapshot; the answer says so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from guard.service.snapshot import SnapshotWatcher

# far longer than any step of the engine: a stopped engine process never says that it is dead
SILENCE_LIMIT_S = 120.0


@dataclass(slots=True)
class Readiness:
    """State of one server; `engine` is vLLM's engine client, `answered_s` when the engine last answered a call.

    `packs_failed` counts packs of the tenants served that could not be loaded: requests that need one get 503.
    """

    engine: Any
    watcher: SnapshotWatcher
    self_test_passed: bool = False
    draining: bool = False
    constraints_loaded: bool = False
    packs_failed: int = 0
    answered_s: float = field(default_factory=time.monotonic)
    silence_limit_s: float = SILENCE_LIMIT_S

    def ready(self) -> bool:
        """Whether generation requests are served."""
        alive = self.engine_state() == "alive"
        return alive and self.self_test_passed and self.constraints_loaded and not self.draining

    def engine_answered(self) -> None:
        """The engine has just answered a call."""
        self.answered_s = time.monotonic()

    def engine_state(self) -> str:
        """`dead` when vLLM says so, `silent` when the engine has answered nothing for a long time, else `alive`."""
        if getattr(self.engine, "errored", False):
            return "dead"
        return "silent" if time.monotonic() - self.answered_s > self.silence_limit_s else "alive"

    def report(self, building: int) -> dict[str, object]:
        """The body of `/readyz`; `building` is the number of tenants whose detector is still being built."""
        state = self.watcher.state()
        ready = self.ready()
        status = "ready" if ready and state.healthy and not self.packs_failed else "degraded" if ready else "not ready"
        return {
            "status": status,
            "engine": self.engine_state(),
            "self_test": "passed" if self.self_test_passed else "pending",
            "constraints": "loaded" if self.constraints_loaded else "loading",
            "packs_not_loaded": self.packs_failed,
            "draining": self.draining,
            "store": "ok" if state.healthy else "unreadable, serving the last good snapshot",
            "snapshot_revision": state.revision,
            "snapshot_age_s": round(min(state.age_s, 1e9), 1),
            "detectors_building": building,
        }
