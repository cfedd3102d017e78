"""Masking of vocabulary tokens in rows of logits: checks, dispatch and torch reference.

Host path: the ids to mask are known on the host. Device path: see `DeviceBank`, which walks the token history on the
device and masks without a sync.
"""

from __future__ import annotations

import torch

BLOCKED = -1
NOT_GUARDED = 0
NEGATIVE_INFINITY = float("-inf")


def mask_tokens(logits: torch.Tensor, row: int, ids: torch.Tensor) -> int:
    """Set logits[row, ids] to -inf in place; ids int64, distinct, beyond the row's width ignored. Returns how many."""
    if ids.numel() == 0:
        return 0
    if int(ids[-1]) >= logits.shape[1]:
        ids = ids[ids < logits.shape[1]]
    logits[row].index_fill_(0, ids, NEGATIVE_INFINITY)
    return ids.numel()


def only_end_tokens(logits: torch.Tensor, row: int, end_ids: torch.Tensor) -> None:
    """Leave nothing but the end-of-sequence tokens in a row."""
    logits[row].fill_(NEGATIVE_INFINITY)
    logits[row].index_fill_(0, end_ids, 0.0)


def rescue_empty(logits: torch.Tensor, rows: list[int], end_ids: torch.Tensor) -> int:
    """Allow the end-of-sequence tokens in rows that hold nothing to sample: all -inf, or a NaN. Returns how many."""
    rescued = 0
    for row in rows:
        largest = float(logits[row].amax())
        if largest == NEGATIVE_INFINITY or largest != largest:
            only_end_tokens(logits, row, end_ids)
            rescued += 1
    return rescued


class DeviceBank:
    """Automata in slots on the device, and the requests that are masked by them."""
