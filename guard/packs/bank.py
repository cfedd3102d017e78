"""Which packs of edits lie in the edit bank of this worker process, and in which slots.

The rules of staging, slots and references are those of `guard.packs.slots`; a pack is read, checked and brought into
the bank's dtype by the reader thread, in pinned memory for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guard.errors import PackError, ResidencyError
from guard.interventions.edits import check_fits, edit_rows
from guard.kernels.edit import EditBank
from guard.kernels.edit_formula import EditRow
from guard.packs.format import load_pack
from guard.packs.slots import Slots
from guard.site import Site


class EditSlots(Slots[dict[int, EditRow], int]):
    """The packs of one bank. A bank of S slots holds S - 1 packs.

    bank: row k belongs to sites[k], of which `local` live on this rank (the others on other pipeline stages).
    fingerprint: of the served model, which every pack must carry; None checks nothing and is for tests only.
    num_layers: decoder layers of the whole model. Of a resident pack only the number of its sites stays on the host.
    """

    def __init__(
        self, bank: EditBank, *, sites: Sequence[Site], local: Sequence[Site], fingerprint: str | None, num_layers: int,
    ) -> None:
        """Raises ResidencyError when sites and bank do not fit together."""
        if len(set(sites)) != bank.num_sites or len(sites) != bank.num_sites or not set(local) <= set(sites):
            raise ResidencyError(f"a bank of {bank.num_sites} sites cannot hold the edits of {len(sites)} sites")
        self._bank, self._sites, self._local = bank, tuple(sites), frozenset(local)
        self._fingerprint, self._num_layers = fingerprint, num_layers
        super().__init__("edit", bank.num_slots)

    def sites_of(self, digest: str) -> int:
        """At how many sites of this rank a resident pack edits. Raises ResidencyError."""
        return self.kept_of(digest)

    def counters(self) -> dict[str, int]:
        """Those of all slots, and `edited_tokens` since the start; waits for the device."""
        return {**super().counters(), "edited_tokens": int(self._bank.counts.sum().item())}

    def _write(self, slot: int, content: dict[int, EditRow]) -> int:
        try:
            for site, row in content.items():
                self._bank.set(site, slot, row)
        except (ValueError, RuntimeError) as exc:
            self._bank.clear(slot)
            raise ResidencyError(f"a pack could not be copied into the edit slot {slot}") from exc
        return len(content)

    def _clear(self, slot: int) -> None:
        self._bank.clear(slot)

    def _read(self, path: Path, digest: str) -> dict[int, EditRow]:
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

    def _enter_reader(self) -> None:
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
