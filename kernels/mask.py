"""Masking of vocabulary tokens in rows of logits: checks, dispatch and torch reference.

Host path: the ids to mask are known on the host. Device path: see `DeviceBank`, which walks the token history on the
device and masks without a sync.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

ARRAYS = (
    "first_child", "label", "fail", "output", "pattern", "entry_offset", "entry_low", "entry_high", "entry_pattern",
    "shared_token", "shared_pattern",
)
REQUEST_WIDTH = 20
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


def keep_tokens(logits: torch.Tensor, row: int, ids: torch.Tensor) -> None:
    """Set logits[row] to -inf in place except at `ids` (int64, distinct; those beyond the row's width are ignored)."""
    kept = ids[ids < logits.shape[1]]
    values = logits[row].index_select(0, kept)
    logits[row].fill_(NEGATIVE_INFINITY)
    logits[row].index_copy_(0, kept, values)


def only_end_tokens(logits: torch.Tensor, row: int, end_ids: torch.Tensor) -> None:
    """Leave nothing but the end-of-sequence tokens in a row."""
    logits[row].fill_(NEGATIVE_INFINITY)
    logits[row].index_fill_(0, end_ids, 0.0)


def rescue_empty(logits: torch.Tensor, rows: list[int], end_ids: torch.Tensor) -> int:
    """Allow the end-of-sequence tokens in rows that hold nothing to sample: all -inf, or a NaN. Returns how many."""
    rescued = 0
    for row in rows:
        values = logits[row]
        # numpy scans one row on one core; torch would wake its whole thread pool for it
        largest = float(values.numpy().max()) if values.device.type == "cpu" else float(values.amax())
        if largest == NEGATIVE_INFINITY or largest != largest:
            only_end_tokens(logits, row, end_ids)
            rescued += 1
    return rescued


def check_rows(
    logits: torch.Tensor, row_mapping: torch.Tensor, local_pos: torch.Tensor, input_ids: torch.Tensor
) -> None:
    """Raise ValueError unless `logits` are float32 [rows, width] with dense rows, and the others have as many rows."""
    if logits.dtype != torch.float32 or logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError(f"logits must be float32 [rows, width] with dense rows, not {logits.dtype} {logits.shape}")
    if not logits.shape[0] == row_mapping.shape[0] == local_pos.shape[0] == input_ids.shape[0]:
        raise ValueError("logits, row_mapping, local_pos and input_ids differ in their number of rows")


class DeviceBank:
    """Automata in slots on the device, and the requests that are masked by them.

    `requests` int32 [R, 20]: automaton slot (0 none, -1 may only end), start, whether special tokens of the output
    vanish from its text, number of exempt patterns, exempt patterns [16]. `states` int32 [R, 3]: node, pending
    bytes, position: the automaton after the committed tokens before `position`, brought up to date on the device.
    `pointers` int64 [slots, 16]: addresses of the arrays of an automaton in the order of `ARRAYS`, then the length of
    the shared list. `counts` int64 [slots]: masked tokens. The host path in `guard.classifiers.automaton` is the
    reference. Raises ValueError for wrong shapes and types, RuntimeError without Triton.
    """

    def __init__(
        self, vocabulary: Mapping[str, Any], end_ids: tuple[int, ...], slots: int, requests: int, device: torch.device
    ) -> None:
        self._device = device
        self._vocabulary = {name: _on(array, device) for name, array in vocabulary.items()}
        self._size = self._vocabulary["flags"].shape[0]
        self._held: dict[int, dict[str, torch.Tensor]] = {}
        self._host = torch.zeros(requests, REQUEST_WIDTH, dtype=torch.int32)
        self._dirty: set[int] = set()
        self._buffers = {
            "requests": torch.zeros(requests, REQUEST_WIDTH, dtype=torch.int32, device=device),
            "states": torch.zeros(requests, 3, dtype=torch.int32, device=device),
            "pointers": torch.zeros(slots, 16, dtype=torch.int64, device=device),
            "counts": torch.zeros(slots, dtype=torch.int64, device=device),
            "rescued": torch.zeros(2, dtype=torch.int32, device=device),
            "end_ids": torch.tensor(end_ids, dtype=torch.int64, device=device),
        }

    def put(self, slot: int, arrays: Mapping[str, Any] | None) -> None:
        """Fill a slot with the arrays of an automaton, or empty it."""
        row = torch.zeros(16, dtype=torch.int64)
        held = {} if arrays is None else {name: _on(arrays[name], self._device) for name in ARRAYS}
        for index, name in enumerate(held):
            row[index] = held[name].data_ptr()
        if held:
            row[len(ARRAYS)] = held["shared_token"].shape[0]
        self._buffers["pointers"][slot].copy_(row)
        self._held[slot] = held

    def set_request(self, index: int, slot: int, start: int, skip_special: bool, exempt: tuple[int, ...]) -> None:
        """Stage everything about the request in slot `index`; nothing of its predecessor stays."""
        row = [slot, start, int(skip_special), len(exempt), *exempt]
        if len(row) > REQUEST_WIDTH:
            raise ValueError(f"a request can have at most {REQUEST_WIDTH - 4} exempt patterns, not {len(exempt)}")
        self._host[index] = torch.tensor(row + [-1] * (REQUEST_WIDTH - len(row)), dtype=torch.int32)
        self._dirty.add(index)

    def clear_request(self, index: int) -> None:
        """Stage that the request in slot `index` is not masked."""
        self.set_request(index, NOT_GUARDED, 0, False, ())

    def flush(self) -> None:
        """Bring staged requests to the device, each with the state of an empty text at its start."""
        if not self._dirty:
            return
        dirty = torch.tensor(sorted(self._dirty))
        self._dirty.clear()
        rows = self._host[dirty]
        states = torch.stack([torch.ones_like(rows[:, 1]), torch.zeros_like(rows[:, 1]), rows[:, 1]], dim=1)
        where = dirty.to(self._device)
        self._buffers["requests"].index_copy_(0, where, rows.to(self._device))
        self._buffers["states"].index_copy_(0, where, states.to(self._device))

    def any_guarded(self, indices: Any) -> bool:
        """Whether a request among the slots `indices` (host array) is masked."""
        return bool((self._host[torch.as_tensor(indices, dtype=torch.int64), 0] != NOT_GUARDED).any())

    def counters(self) -> dict[str, int]:
        """`masked_tokens`, `masked_tokens:<slot>`, `rescued_rows`, `blocked_rows`; waits for the device."""
        counts = self._buffers["counts"].tolist()
        rescued, blocked = self._buffers["rescued"].tolist()
        totals = {f"masked_tokens:{slot}": count for slot, count in enumerate(counts) if count}
        return {**totals, "masked_tokens": sum(counts), "rescued_rows": rescued, "blocked_rows": blocked}

    def apply(
        self, logits: torch.Tensor, idx_mapping: torch.Tensor, row_mapping: torch.Tensor, local_pos: torch.Tensor,
        input_ids: torch.Tensor, all_tokens: torch.Tensor, prompt_len: torch.Tensor, total_len: torch.Tensor,
    ) -> None:
        """Mask `logits` [rows, width] float32 in place.

        `idx_mapping` [requests] and `row_mapping` [rows] give slots, `local_pos` [rows] the draft number of a
        row, `input_ids` [rows] its input token; `all_tokens` [R, length], `prompt_len`, `total_len` [R] the history.
        """
        check_rows(logits, row_mapping, local_pos, input_ids)
        if logits.shape[0] == 0:
            return
        try:
            from guard.kernels import mask_triton
        except ImportError as error:
            raise RuntimeError("masking on the device needs Triton") from error
        batch = {
            "idx_mapping": idx_mapping, "row_mapping": row_mapping, "local_pos": local_pos, "input_ids": input_ids,
            "all_tokens": all_tokens, "prompt_len": prompt_len, "total_len": total_len,
        }
        mask_triton.launch(logits, self._vocabulary, self._buffers, batch, self._size)


def _on(array: Any, device: torch.device) -> torch.Tensor:
    tensor = torch.as_tensor(array).to(device).contiguous()
    if tensor.dtype != torch.int32:
        raise ValueError(f"arrays of an automaton must be int32, not {tensor.dtype}")
    return tensor
