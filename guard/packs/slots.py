"""Which interventions lie in the numbered slots of this worker process: the engine's half of residency, for any kind.

An intervention is named by its content hash and never changes: a new version is another one and takes another slot. It
is *staged* (read and checked by a thread, never by the thread that steps the engine), *committed* between two steps
into a free slot, and *released*. Requests that run with it hold references; a slot is given away only when nobody
refers to it, and is nothing until then and from then on. Slot 0 stays nothing.
"""

from __future__ import annotations

import heapq
import threading
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from guard.errors import GuardError, ResidencyError

State = Literal["loading", "ready", "resident"]
Read = TypeVar("Read")
Kept = TypeVar("Kept")

_READERS = 2


@dataclass(slots=True)
class _Resident(Generic[Kept]):
    """An intervention in its slot. A released one leaves with its last reference."""

    slot: int
    kept: Kept
    references: int = 0
    released: bool = False


class Slots(ABC, Generic[Read, Kept]):
    """`num_slots` slots including slot 0. Methods may be called from any thread; those that write do so on the
    caller's current stream. Subclasses say how an intervention is read, written into a slot and cleared."""

    def __init__(self, kind: str, num_slots: int) -> None:
        self.kind, self.num_slots = kind, num_slots
        self._lock = threading.RLock()
        self._free = list(range(1, num_slots))
        self._staged: dict[str, Future[Read]] = {}
        self._resident: dict[str, _Resident[Kept]] = {}
        self._loads = self._releases = 0
        # threads start with the first intervention
        self._readers = ThreadPoolExecutor(_READERS, f"guard-{kind}", initializer=self._enter_reader)

    def stage(self, path: Path, digest: str) -> None:
        """Begin to read the file at `path`; what is wrong with it is said by `staged`. A resident one stays."""
        with self._lock:
            if digest in self._resident:
                self._resident[digest].released = False
            elif digest not in self._staged:
                self._staged[digest] = self._readers.submit(self._read, path, digest)

    def staged(self, digest: str) -> State:
        """How far an intervention has come.

        Raises PackError or ResidencyError with the reason when it cannot be used, and forgets it: `stage` tries again.
        """
        with self._lock:
            if digest in self._resident:
                return "resident"
            reading = self._staged.get(digest)
            if reading is None:
                raise ResidencyError(f"{self.kind} {digest[:16]} was not staged")
            if not reading.done():
                return "loading"
            error = reading.exception()
            if error is None:
                return "ready"
            del self._staged[digest]
        if isinstance(error, GuardError):
            raise error
        raise ResidencyError(f"{self.kind} {digest[:16]} could not be read: {type(error).__name__}") from error

    def commit(self, digest: str) -> int:
        """Put a staged intervention into a free slot and return the slot; a resident one stays where it is.

        Raises ResidencyError when it is not read yet or no slot is free, PackError when it cannot be used; nothing has
        changed then.
        """
        with self._lock:
            if self.staged(digest) == "resident":
                self._resident[digest].released = False
                return self._resident[digest].slot
            reading = self._staged[digest]
            if not reading.done():
                raise ResidencyError(f"{self.kind} {digest[:16]} is not read yet")
            if not self._free:
                raise ResidencyError(f"all {self.num_slots - 1} {self.kind} slots are in use")
            slot = self._free[0]
            kept = self._write(slot, reading.result())
            heapq.heappop(self._free)
            del self._staged[digest]
            self._resident[digest] = _Resident(slot, kept)
            self._loads += 1
            return slot

    def slot_of(self, digest: str) -> int | None:
        """Slot of a resident intervention, released ones that are still in use included."""
        with self._lock:
            found = self._resident.get(digest)
            return None if found is None else found.slot

    def kept_of(self, digest: str) -> Kept:
        """What writing a resident intervention into its slot left on the host. Raises ResidencyError."""
        with self._lock:
            return self._found(digest).kept

    def acquire(self, digest: str) -> int:
        """A request begins to run with an intervention; its slot. Raises ResidencyError when it is not resident."""
        with self._lock:
            found = self._found(digest)
            found.references += 1
            return found.slot

    def drop(self, digest: str) -> None:
        """That request has left the batch. Raises ResidencyError for a drop without an acquire."""
        with self._lock:
            found = self._found(digest)
            if found.references == 0:
                raise ResidencyError(f"{self.kind} {digest[:16]} has no reference to drop")
            found.references -= 1
            if found.released and found.references == 0:
                self._remove(digest)

    def release(self, digest: str) -> None:
        """Free the slot of an intervention, now or with its last reference; unknown ones are ignored."""
        with self._lock:
            reading = self._staged.pop(digest, None)
            if reading is not None:
                reading.cancel()
            found = self._resident.get(digest)
            if found is None:
                return
            found.released = True
            if found.references == 0:
                self._remove(digest)

    def counters(self) -> dict[str, int]:
        """`resident`, `capacity`, `loads` and `releases` of this kind."""
        with self._lock:
            return {
                "resident": len(self._resident), "capacity": self.num_slots - 1, "loads": self._loads,
                "releases": self._releases,
            }

    @abstractmethod
    def _read(self, path: Path, digest: str) -> Read:
        """Read and check a file, in a reader thread. Raises PackError."""

    @abstractmethod
    def _write(self, slot: int, content: Read) -> Kept:
        """Fill a free slot and return what stays on the host. Raises ResidencyError, and leaves the slot empty then."""

    @abstractmethod
    def _clear(self, slot: int) -> None:
        """Empty a slot that nobody uses."""

    def _enter_reader(self) -> None:
        """Called once in every reader thread."""

    def _found(self, digest: str) -> _Resident[Kept]:
        found = self._resident.get(digest)
        if found is None:
            raise ResidencyError(f"{self.kind} {digest[:16]} is not resident")
        return found

    def _remove(self, digest: str) -> None:
        slot = self._resident.pop(digest).slot
        # in stream order behind the steps that used it
        self._clear(slot)
        heapq.heappush(self._free, slot)
        self._releases += 1
