"""The server's view of the store: an immutable snapshot, swapped atomically when the store's revision changes.

A store that cannot be read, is damaged or went back in time never replaces the last good snapshot: the watcher keeps
it, says that it is unhealthy, and tries again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from guard.errors import StoreError
from guard.policy import Snapshot, Tenant
from guard.service.store.store import Store

log = structlog.get_logger(__name__)

SnapshotCallback = Callable[[Snapshot], None]


@dataclass(frozen=True, slots=True)
class WatcherState:
    """What readiness and metrics report. `age_s`: seconds since the store was last read without an error.

    `reloads` counts snapshots taken over, `failures` outages: a store that cannot be read for an hour is one.
    """

    healthy: bool
    age_s: float
    revision: int
    reloads: int
    failures: int
    error: str


class SnapshotWatcher:
    """Polls `store.revision()` every `interval_s` seconds in a daemon thread and reloads on change."""

    def __init__(self, store: Store, interval_s: float = 0.25) -> None:
        self._store = store
        self._interval_s = interval_s
        self._current: Snapshot | None = None
        self._checked_s = 0.0
        self._error = ""
        self._reloads = 0
        self._failures = 0
        self._callbacks: list[SnapshotCallback] = []
        self._stopped = threading.Event()
        # one look at the store at a time
        self._turn = threading.Lock()
        # held for the swap alone: the current snapshot and who is told of the next one belong together
        self._swap = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> Snapshot:
        """Read the first snapshot and start polling. Raises StoreError when there is no snapshot to begin with.

        Callbacks that are registered already are called with the first snapshot, too.
        """
        first = self._store.snapshot()
        self._accept(first)
        self._thread = threading.Thread(target=self._poll, name="guard-snapshot", daemon=True)
        self._thread.start()
        return first

    def stop(self) -> None:
        """Stop polling; the last snapshot stays readable."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)

    @property
    def current(self) -> Snapshot:
        """The last good snapshot. Raises StoreError before `start`."""
        snapshot = self._current
        if snapshot is None:
            raise StoreError("the snapshot watcher has not been started")
        return snapshot

    @property
    def healthy(self) -> bool:
        """Whether the last look at the store succeeded, and was not long ago."""
        return not self._error and self.age_s < max(10.0, 8 * self._interval_s)

    @property
    def age_s(self) -> float:
        """Seconds since the store was last read without an error."""
        return time.monotonic() - self._checked_s if self._checked_s else float("inf")

    def state(self) -> WatcherState:
        """Everything readiness and metrics report, at once."""
        revision = self._current.revision if self._current else 0
        return WatcherState(self.healthy, self.age_s, revision, self._reloads, self._failures, self._error)

    def on_change(self, callback: SnapshotCallback) -> None:
        """Call `callback(snapshot)` in the watcher's thread after every swap; what it raises is logged, not passed on.

        An asyncio server hands over with `loop.call_soon_threadsafe`.
        """
        with self._swap:
            self._callbacks.append(callback)

    def subscribe(self, callback: SnapshotCallback) -> Snapshot:
        """Register `callback` and return the current snapshot; it is called with every later one, and no other.

        It may be called before this returns. Raises StoreError, and registers nothing, before `start`.
        """
        with self._swap:
            snapshot = self.current
            self._callbacks.append(callback)
        return snapshot

    def refresh(self) -> bool:
        """Look at the store now. Returns whether it could be read; the snapshot is swapped when it changed."""
        with self._turn:
            try:
                snapshot = self._changed()
            except StoreError as error:
                self._fail(str(error))
                return False
            except Exception as error:  # noqa: BLE001 - the thread must outlive any fault and keep the last snapshot
                self._fail(f"unexpected {type(error).__name__} while reading the store")
                return False
            if snapshot is None:
                self._recover()
            else:
                self._accept(snapshot)
        return True

    def _changed(self) -> Snapshot | None:
        revision, known = self._store.revision(), self._current
        if known is not None and revision < known.revision:
            raise StoreError(
                f"the tenant store went back from revision {known.revision} to {revision}: it was replaced; "
                "restart the server to accept it"
            )
        return None if known is not None and revision == known.revision else self._store.snapshot()

    def _accept(self, snapshot: Snapshot) -> None:
        with self._swap:
            # one reference assignment: readers see the old snapshot or the new one, never a mixture
            self._current = snapshot
            callbacks = tuple(self._callbacks)
        self._reloads += 1
        self._recover()
        log.info("snapshot_loaded", revision=snapshot.revision, tenants=len(snapshot.tenants))
        for callback in callbacks:
            try:
                callback(snapshot)
            except Exception as error:  # noqa: BLE001 - one listener must not keep the others from the new snapshot
                log.error("snapshot_callback_failed", error=type(error).__name__)

    def _recover(self) -> None:
        self._checked_s = time.monotonic()
        self._error = ""

    def _fail(self, reason: str) -> None:
        # counted when it begins: the store is asked several times a second
        self._failures += not self._error
        if reason != self._error:
            log.error("snapshot_reload_failed", reason=reason)
        self._error = reason

    def _poll(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self.refresh()


def difference(before: Snapshot | None, after: Snapshot) -> tuple[tuple[Tenant, ...], tuple[Tenant, ...]]:
    """Tenants of `after` that are new or changed since `before`, and those of `before` that are gone.

    Two snapshots of one store share the tenants that did not change, so that 10,000 of them are compared in a
    millisecond.
    """
    known = before.tenants if before is not None else {}
    changed = tuple(tenant for name, tenant in after.tenants.items() if known.get(name) is not tenant)
    return changed, tuple(tenant for name, tenant in known.items() if name not in after.tenants)
