"""Which automata lie in the constraint slots of this worker process, and how requests refer to them."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from guard.classifiers.automaton import Automaton
from guard.classifiers.vocabulary import Vocabulary
from guard.kernels.mask import DeviceBank
from guard.packs.slots import Slots


class ConstraintSlots(Slots[Automaton, Automaton]):
    """Automata of one vocabulary. With a device bank (Model Runner V2) their arrays lie there as well."""

    def __init__(self, vocabulary: Vocabulary, num_slots: int, bank: DeviceBank | None = None) -> None:
        super().__init__("constraint", num_slots)
        self.vocabulary = vocabulary
        self._bank = bank
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()

    def enter(self, digest: str) -> tuple[int, Automaton]:
        """A request begins to run with an automaton: its slot, and itself. Raises ResidencyError."""
        slot = self.acquire(digest)
        return slot, self.kept_of(digest)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        if amount:
            with self._counting:
                self._counts[name] += amount

    def counters(self) -> dict[str, int]:
        """`masked_tokens`, `masked_tokens:<slot>`, `blocked_rows`, `rescued_rows`, `unresolved_rows`, and
        `resident_constraints`; waits for the device."""
        with self._counting:
            totals = Counter(self._counts)
        if self._bank is not None:
            totals.update(self._bank.counters())
        return {**totals, "resident_constraints": super().counters()["resident"]}

    def _read(self, path: Path, digest: str) -> Automaton:
        return Automaton.load(path, self.vocabulary.digest, digest)

    def _write(self, slot: int, content: Automaton) -> Automaton:
        if self._bank is not None:
            self._bank.put(slot, content.arrays)
        return content

    def _clear(self, slot: int) -> None:
        if self._bank is not None:
            self._bank.put(slot, None)
