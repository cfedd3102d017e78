"""The edit bank of this worker process, allocated before vLLM sizes its cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from guard.engine.compat import EditSettings
from guard.engine.edit_sites import wrap_sites
from guard.kernels import edit_cpu
from guard.kernels.edit import EditBank
from guard.packs.bank import EditSlots
from guard.plan import Plan
from guard.site import Site, parse_sites

# ranks of a kernel tile
_RANK_STEP = 16


class _Process:
    slots: EditSlots | None = None
    sites: tuple[Site, ...] = ()


def install_edits(
    model: nn.Module, settings: EditSettings, *, num_layers: int, width: int, dtype: torch.dtype, device: torch.device,
) -> EditBank | None:
    """Wrap the sites of `settings` in `model` and allocate their bank; None when there are no sites.

    Raises ConfigurationError for sites that the model does not have, EngineMismatchError for layers that are unknown.
    """
    sites = parse_sites(settings.sites, num_layers)
    _Process.sites, _Process.slots = (), None
    if not sites:
        return None
    _Process.sites = wrap_sites(model, sites, device)
    rank = -(-settings.max_rank // _RANK_STEP) * _RANK_STEP
    stored = torch.float32 if dtype == torch.float32 else torch.bfloat16
    if device.type == "cpu":
        # built now, not in the first step
        edit_cpu.library()
    bank = EditBank.empty(len(sites), settings.max_slots + 1, width, rank, stored, device)
    _Process.slots = EditSlots(
        bank, sites=sites, local=_Process.sites, fingerprint=settings.fingerprint, num_layers=num_layers,
    )
    return bank


def edit_slots() -> EditSlots | None:
    """The residency of this process; None in an engine without sites."""
    return _Process.slots


def local_sites() -> Sequence[Site]:
    """The steerable sites of this rank."""
    return _Process.sites


def edits_resident(plan: Plan) -> bool:
    """Whether everything that the edits of `plan` name is in the bank."""
    slots = _Process.slots
    return not plan.edits or (slots is not None and all(slots.slot_of(edit.pack) is not None for edit in plan.edits))
