"""What `/readyz` says: whether requests are served, and what is wrong when not.

An unreadable tenant store does not stop the server, which goes on with its last good snapshot; the answer says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guard.service.snapshot import SnapshotWatcher


@dataclass(slots=True)
class Readiness:
    """State of one server; `engine` is vLLM's engine client."""

    engine: Any
    watcher: SnapshotWatcher
    self_test_passed: bool = False
    draining: bool = False
    constraints_loaded: bool = False

    def ready(self) -> bool:
        """Whether generation requests are served."""
        alive = not getattr(self.engine, "errored", False)
        return alive and self.self_test_passed and self.constraints_loaded and not self.draining

    def report(self, building: int) -> dict[str, object]:
        """The body of `/readyz`; `building` is the number of tenants whose detector is still being built."""
        state = self.watcher.state()
        ready = self.ready()
        status = "ready" if ready and state.healthy else "degraded" if ready else "not ready"
        return {
            "status": status,
            "engine": "dead" if getattr(self.engine, "errored", False) else "alive",
            "self_test": "passed" if self.self_test_passed else "pending",
            "constraints": "loaded" if self.constraints_loaded else "loading",
            "draining": self.draining,
            "store": "ok" if state.healthy else "unreadable, serving the last good snapshot",
            "snapshot_revision": state.revision,
            "snapshot_age_s": round(min(state.age_s, 1e9), 1),
            "detectors_building": building,
        }
