"""The edit bank of a worker process: sites wrapped and memory allocated before vLLM sizes its cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from guard.engine.compat import EditSettings
from guard.engine.edit_sites import wrap_sites
from guard.kernels import edit_cpu
from guard.kernels.edit import EditBank
from guard.packs.bank import EditSlots
from guard.site import Site, parse_sites

# ranks of a kernel tile
_RANK_STEP = 16


@dataclass(frozen=True, slots=True)
class InstalledEdits:
    """The bank, its slots, and the steerable sites of this rank."""

    bank: EditBank
    slots: EditSlots
    local_sites: tuple[Site, ...]


def install_edits(
    model: nn.Module, settings: EditSettings, *, num_layers: int, width: int, dtype: torch.dtype, device: torch.device,
) -> InstalledEdits | None:
    """Wrap the sites of `settings` in `model` and allocate their bank; None when there are no sites.

    Raises ConfigurationError for sites that the model does not have, EngineMismatchError for layers that are unknown.
    """
    sites = parse_sites(settings.sites, num_layers)
    if not sites:
        return None
    local = wrap_sites(model, sites, device)
    rank = -(-settings.max_rank // _RANK_STEP) * _RANK_STEP
    stored = torch.float32 if dtype == torch.float32 else torch.bfloat16
    if device.type == "cpu":
        # built now, not in the first step
        edit_cpu.library()
    bank = EditBank.empty(len(sites), settings.max_slots + 1, width, rank, stored, device)
    slots = EditSlots(bank, sites=sites, local=local, fingerprint=settings.fingerprint, num_layers=num_layers)
    return InstalledEdits(bank, slots, tuple(local))
