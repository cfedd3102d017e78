"""Automata that are resident in this worker process: staged from files, committed to slots, looked up by digest."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from guard.classifiers.automaton import Automaton
from guard.classifiers.vocabulary import Vocabulary
from guard.errors import PackError, ResidencyError

SLOTS = 256
Listener = Callable[[int, Automaton | None], None]


class ConstraintStore:
    """Two-phase residency: `stage` reads and checks a file, `commit` gives it a slot, 0 being "nothing".

    A released automaton stays where it is until its slot is needed, so that running and preempted requests keep the
    version they were admitted with; a slot that a request still uses is never given away.
    """

    def __init__(self, slots: int = SLOTS) -> None:
        self._lock = threading.RLock()
        self._slots = slots
        self._staged: dict[str, Automaton] = {}
        self._resident: dict[str, int] = {}
        self._retired: dict[str, int] = {}
        self._by_slot: dict[int, Automaton] = {}
        self._listeners: list[Listener] = []
        self._in_use: Callable[[], set[int]] = set
        self._counts: Counter[str] = Counter()
        self._device_counts: Callable[[], dict[str, int]] = dict
        self.vocabulary: Vocabulary | None = None

    def configure(self, vocabulary: Vocabulary) -> None:
        """Tell the store which vocabulary the model has; everything resident for another one is dropped."""
        with self._lock:
            if self.vocabulary is not None and self.vocabulary.digest != vocabulary.digest:
                for table in (self._staged, self._resident, self._retired, self._by_slot):
                    table.clear()
            self.vocabulary = vocabulary

    def connect(
        self, listener: Listener, in_use: Callable[[], set[int]], device_counts: Callable[[], dict[str, int]]
    ) -> None:
        """Attach the device bank: told of every change of a slot, asked which slots running requests use."""
        with self._lock:
            self._listeners = [listener]
            self._in_use = in_use
            self._device_counts = device_counts
            for slot, automaton in self._by_slot.items():
                listener(slot, automaton)

    def stage(self, path: str, digest: str) -> None:
        """Read an automaton. Raises ResidencyError when it is damaged or made for another vocabulary."""
        with self._lock:
            if digest in self._staged or digest in self._resident or digest in self._retired:
                return
            if self.vocabulary is None:
                raise ResidencyError("no constraint can be loaded: the guard's logits processor is not running")
            vocabulary = self.vocabulary.digest
        try:
            automaton = Automaton.load(Path(path), vocabulary, digest)
        except PackError as error:
            raise ResidencyError(str(error)) from error
        with self._lock:
            self._staged[digest] = automaton

    def commit(self, digest: str) -> int:
        """Make a staged automaton resident and return its slot. Raises ResidencyError when all slots are in use."""
        with self._lock:
            if digest in self._resident:
                return self._resident[digest]
            if digest in self._retired:
                self._resident[digest] = self._retired.pop(digest)
                return self._resident[digest]
            if digest not in self._staged:
                raise ResidencyError(f"constraint {digest[:16]} was not staged")
            slot = self._free_slot()
            automaton = self._staged.pop(digest)
            self._resident[digest] = slot
            self._by_slot[slot] = automaton
            for listener in self._listeners:
                listener(slot, automaton)
            return slot

    def release(self, digest: str) -> None:
        """Retire an automaton: requests that are admitted from now on cannot use it. Unknown digests are ignored."""
        with self._lock:
            self._staged.pop(digest, None)
            if digest in self._resident:
                self._retired[digest] = self._resident.pop(digest)

    def slot_of(self, digest: str) -> int:
        """Slot of a resident automaton. Raises ResidencyError when it is not resident."""
        with self._lock:
            slot = self._resident.get(digest)
        if slot is None:
            raise ResidencyError(f"constraint {digest[:16]} is not resident")
        return slot

    def find(self, digest: str) -> tuple[int, Automaton]:
        """Slot and automaton of a running request, retired ones included. Raises ResidencyError when it is gone."""
        with self._lock:
            slot = self._resident.get(digest, self._retired.get(digest, 0))
            if not slot:
                raise ResidencyError(f"constraint {digest[:16]} is not resident")
            return slot, self._by_slot[slot]

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        if amount:
            with self._lock:
                self._counts[name] += amount

    def counters(self) -> dict[str, int]:
        """`masked_tokens`, `masked_tokens:<slot>`, `blocked_rows`, `rescued_rows`, `unresolved_rows`, `resident`."""
        with self._lock:
            totals = Counter(self._counts)
            totals.update(self._device_counts())
            return {**totals, "resident": len(self._resident), "retired": len(self._retired)}

    def _free_slot(self) -> int:
        taken = set(self._by_slot)
        for slot in range(1, self._slots):
            if slot not in taken:
                return slot
        busy = self._in_use()
        for digest, slot in self._retired.items():
            if slot not in busy:
                del self._retired[digest], self._by_slot[slot]
                for listener in self._listeners:
                    listener(slot, None)
                return slot
        raise ResidencyError(f"all {self._slots - 1} constraint slots are in use")


@lru_cache(maxsize=1)
def constraint_store() -> ConstraintStore:
    """The store of this process."""
    return ConstraintStore()
