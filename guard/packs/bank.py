"""Which packs of edits lie in the edit bank of this worker process, and in which slots.

A pack is named by its content hash and never changes: a new version is another pack and takes another slot. It is
*staged* (read, checked and brought into the bank's dtype by a thread, in pinned memory for a GPU), *committed* between
two steps into a free slot, and *released*. Requests that run with it hold references; a slot is given away only when
nobody refers to it, and is nothing until then and from then on.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from guard.errors import GuardError, PackError, ResidencyError
from guard.interventions.edits import check_fits, edit_rows
from guard.kernels.edit import EditBank
from guard.kernels.edit_formula import EditRow
from guard.packs.format import load_pack
from guard.site import Site

State = Literal["loading", "ready", "resident"]

_READERS = 2


@dataclass(slots=True)
class _Resident:
    """A pack in the bank. A released one leaves with its last reference."""

    slot: int
    num_sites: int
    references: int = 0
    released: bool = False


class EditSlots:
    """The packs of one bank. Slot 0 stays nothing, so a bank of S slots holds S - 1 packs.

    bank: row k belongs to sites[k], of which `local` live on this rank (the others on other pipeline stages).
    fingerprint: of the served model, which every pack must carry; None checks nothing and is for tests only.
    num_layers: decoder layers of the whole model. Methods may be called from any thread; those that write to the bank
    do so on the caller's current stream.
    """

    def __init__(
        self, bank: EditBank, *, sites: Sequence[Site], local: Sequence[Site], fingerprint: str | None, num_layers: int,
    ) -> None:
        """Raises ResidencyError when sites and bank do not fit together."""
        if len(set(sites)) != bank.num_sites or len(sites) != bank.num_sites or not set(local) <= set(sites):
            raise ResidencyError(f"a bank of {bank.num_sites} sites cannot hold the edits of {len(sites)} sites")
        self._bank, self._sites, self._local = bank, tuple(sites), frozenset(local)
        self._fingerprint, self._num_layers = fingerprint, num_layers
        self._lock = threading.RLock()
        self._free = list(range(1, bank.num_slots))
        self._staged: dict[str, Future[dict[int, EditRow]]] = {}
        self._resident: dict[str, _Resident] = {}
        self._loads = self._releases = 0
        # threads start with the first pack
        self._readers = ThreadPoolExecutor(_READERS, "guard-packs", initializer=self._enter_device)

    def stage(self, path: Path, digest: str) -> None:
        """Begin to read the pack at `path`; what is wrong with it is said by `staged`. A resident pack stays."""
        with self._lock:
            if digest in self._resident:
                self._resident[digest].released = False
            elif digest not in self._staged:
                self._staged[digest] = self._readers.submit(self._read, path, digest)

    def staged(self, digest: str) -> State:
        """How far a pack has come.

        Raises PackError or ResidencyError with the reason when it cannot be used, and forgets it: `stage` tries again.
        """
        with self._lock:
            if digest in self._resident:
                return "resident"
            reading = self._staged.get(digest)
            if reading is None:
                raise ResidencyError(f"pack {digest[:16]} was not staged")
            if not reading.done():
                return "loading"
            error = reading.exception()
            if error is None:
                return "ready"
            del self._staged[digest]
        if isinstance(error, GuardError):
            raise error
        raise ResidencyError(f"pack {digest[:16]} could not be read: {type(error).__name__}") from error

    def commit(self, digest: str) -> int:
        """Copy a staged pack into a free slot and return the slot; a resident one stays where it is.

        Raises ResidencyError when it is not read yet or no slot is free, PackError when it cannot be used; nothing has
        changed then.
        """
        with self._lock:
            if self.staged(digest) == "resident":
                self._resident[digest].released = False
                return self._resident[digest].slot
            reading = self._staged[digest]
            if not reading.done():
                raise ResidencyError(f"pack {digest[:16]} is not read yet")
            if not self._free:
                raise ResidencyError(f"all {self._bank.num_slots - 1} edit slots are in use")
            rows = reading.result()
            slot = self._free[0]
            self._write(slot, rows)
            heapq.heappop(self._free)
            del self._staged[digest]
            self._resident[digest] = _Resident(slot, len(rows))
            self._loads += 1
            return slot

    def slot_of(self, digest: str) -> int | None:
        """Slot of a resident pack, released ones that are still in use included."""
        with self._lock:
            found = self._resident.get(digest)
            return None if found is None else found.slot

    def sites_of(self, digest: str) -> int:
        """At how many sites of this rank a resident pack edits. Raises ResidencyError."""
        with self._lock:
            return self._found(digest).num_sites

    def acquire(self, digest: str) -> None:
        """A request begins to run with a pack. Raises ResidencyError when it is not resident."""
        with self._lock:
            self._found(digest).references += 1

    def drop(self, digest: str) -> None:
        """That request has left the batch. Raises ResidencyError for a drop without an acquire."""
        with self._lock:
            found = self._found(digest)
            if found.references == 0:
                raise ResidencyError(f"pack {digest[:16]} has no reference to drop")
            found.references -= 1
            if found.released and found.references == 0:
                self._remove(digest)

    def release(self, digest: str) -> None:
        """Free the slot of a pack, now or with its last reference; unknown packs are ignored."""
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
        """`resident`, `capacity`, `loads`, `releases`, and `edited_tokens` since the start; waits for the device."""
        with self._lock:
            return {
                "resident": len(self._resident), "capacity": self._bank.num_slots - 1, "loads": self._loads,
                "releases": self._releases, "edited_tokens": int(self._bank.counts.sum().item()),
            }

    def _found(self, digest: str) -> _Resident:
        found = self._resident.get(digest)
        if found is None:
            raise ResidencyError(f"pack {digest[:16]} is not resident")
        return found

    def _write(self, slot: int, rows: Mapping[int, EditRow]) -> None:
        try:
            for site, row in rows.items():
                self._bank.set(site, slot, row)
        except (ValueError, RuntimeError) as exc:
            self._bank.clear(slot)
            raise ResidencyError(f"a pack could not be copied into the edit slot {slot}") from exc

    def _remove(self, digest: str) -> None:
        slot = self._resident.pop(digest).slot
        # in stream order behind the steps that used it
        self._bank.clear(slot)
        heapq.heappush(self._free, slot)
        self._releases += 1

    def _read(self, path: Path, digest: str) -> dict[int, EditRow]:
        """Rows of this rank by index of the site, as the bank stores them. Raises PackError."""
        pack = load_pack(path, model_fingerprint=self._fingerprint)
        if pack.header.content_hash != digest:
            raise PackError(f"{path.name}: not the pack {digest[:16]} but {str(pack.header.content_hash)[:16]}")
        bank = self._bank
        check_fits(pack, width=bank.width, num_layers=self._num_layers, max_rank=bank.max_rank)
        rows = edit_rows(pack)
        missing = [str(site) for site in rows if site not in self._sites]
        if missing:
            raise PackError(
                f"{path.name}: the engine cannot edit at {', '.join(missing[:5])}; name these sites in --guard-sites"
            )
        return {
            self._sites.index(site): stored_row(row, bank, f"{path.name}: site {site}")
            for site, row in rows.items() if site in self._local
        }

    def _enter_device(self) -> None:
        # a new thread begins on device 0, where pinning memory would make a context
        if self._bank.parts.is_cuda:
            torch.cuda.set_device(self._bank.parts.device)


def stored_row(row: EditRow, bank: EditBank, name: str) -> EditRow:
    """`row` in the dtypes of `bank`, in pinned memory when that is on a GPU. Raises PackError when numbers overflow."""
    changed: dict[str, Any] = {}
    for field in fields(row):
        part = getattr(row, field.name)
        if not isinstance(part, Tensor):
            continue
        stored = part.detach().to(getattr(bank, field.name).dtype).contiguous()
        if not bool(stored.isfinite().all()):
            raise PackError(f"{name}: {field.name} exceeds the range of {stored.dtype}")
        changed[field.name] = stored.pin_memory() if bank.parts.is_cuda else stored
    return replace(row, **changed)


def memory_bytes(num_sites: int, num_slots: int, width: int, max_rank: int, dtype: torch.dtype) -> int:
    """Device memory of a bank; `num_slots` includes slot 0. Raises ValueError for a bank that cannot be."""
    return EditBank.empty(num_sites, num_slots, width, max_rank, dtype, "meta").size_bytes
