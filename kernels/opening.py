"""Keeps an answer to the wordings that it must open with: checks, dispatch and torch reference of the device path.

Tables of `guard.classifiers.opening_table` lie in slots on the device. A row of logits follows its answer's tokens
through the table; until a wording is complete every token that none goes on with is set to -inf.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

import torch

from guard.kernels.mask import NEGATIVE_INFINITY, check_rows

FREE = -1
# most tokens that may follow one node: the kernel holds their logits in one block
MAX_CHOICES = 1024
# tables that stay on the device beyond those in use
SPARE_SLOTS = 64


class Table(Protocol):
    """Arrays of an opening table: int32 `offset` [N + 1] over `token` and `following` [E]."""

    @property
    def offset(self) -> Any:
        """First entry of every node."""

    @property
    def token(self) -> Any:
        """Token of every entry."""

    @property
    def following(self) -> Any:
        """Node that the token leads to, or FREE."""


class OpeningBank:
    """Opening tables in device slots, and the requests whose answers follow them.

    `requests` int32 [R, 2]: table slot (0: none) and absolute position of the answer's first token. `pointers` int64
    [slots, 4]: addresses of `offset`, `token` and `following`.
    """

    def __init__(self, requests: int, end_ids: tuple[int, ...], device: torch.device) -> None:
        slots = requests + SPARE_SLOTS + 1
        self._device = device
        self._host = torch.zeros(requests, 2, dtype=torch.int32)
        self._dirty: set[int] = set()
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._held: dict[int, tuple[Table, tuple[torch.Tensor, ...]]] = {}
        self._free = list(range(slots - 1, 0, -1))
        self._uses = [0] * slots
        self.requests = torch.zeros(requests, 2, dtype=torch.int32, device=device)
        self.pointers = torch.zeros(slots, 4, dtype=torch.int64, device=device)
        self.end_ids = torch.tensor(end_ids, dtype=torch.int64, device=device)

    def set_request(self, index: int, table: Table, start: int) -> None:
        """Stage that the answer of the request in slot `index`, from position `start` on, follows `table`."""
        self.clear_request(index)
        slot = self._slot(table)
        self._uses[slot] += 1
        self._host[index] = torch.tensor([slot, start], dtype=torch.int32)
        self._dirty.add(index)

    def clear_request(self, index: int) -> None:
        """Stage that the request in slot `index` is free."""
        slot = int(self._host[index, 0])
        if slot:
            self._uses[slot] -= 1
            self._host[index] = 0
            self._dirty.add(index)

    def flush(self) -> None:
        """Bring staged requests to the device."""
        if not self._dirty:
            return
        dirty = torch.tensor(sorted(self._dirty))
        self._dirty.clear()
        self.requests.index_copy_(0, dirty.to(self._device), self._host[dirty].to(self._device))

    def any_opened(self, indices: Any) -> bool:
        """Whether a request among the slots `indices` (host array) has an opening."""
        return bool(self._host[torch.as_tensor(indices, dtype=torch.int64), 0].any())

    def apply(
        self, logits: torch.Tensor, row_mapping: torch.Tensor, local_pos: torch.Tensor, input_ids: torch.Tensor,
        all_tokens: torch.Tensor, total_len: torch.Tensor,
    ) -> None:
        """Mask `logits` [rows, width] float32 in place.

        `row_mapping` [rows] gives request slots, `local_pos` [rows] the draft number of a row, `input_ids` [rows] its
        input token; `all_tokens` [R, length] and `total_len` [R] are the history.
        """
        check_rows(logits, row_mapping, local_pos, input_ids)
        if logits.shape[0] == 0:
            return
        try:
            from guard.kernels import opening_triton
        except ImportError as error:
            raise RuntimeError("openings on the device need Triton") from error
        opening_triton.launch(
            logits, self.requests, self.pointers, self.end_ids, row_mapping, local_pos, input_ids, all_tokens, total_len
        )

    def reference(
        self, logits: torch.Tensor, row_mapping: torch.Tensor, local_pos: torch.Tensor, input_ids: torch.Tensor,
        all_tokens: torch.Tensor, total_len: torch.Tensor,
    ) -> torch.Tensor:
        """What `apply` must give, in torch on the host: a new tensor."""
        masked = logits.clone()
        for row in range(logits.shape[0]):
            index, drafts = int(row_mapping[row]), int(local_pos[row])
            slot, start = self._host[index].tolist()
            if not slot:
                continue
            committed = all_tokens[index, start : int(total_len[index])].tolist()
            drafted = input_ids[row - drafts + 1 : row + 1].tolist() if drafts else []
            kept = _allowed(self._held[slot][0], [*committed, *drafted])
            if kept is None:
                continue
            kept = kept[kept < logits.shape[1]]
            usable = kept[masked[row, kept] > NEGATIVE_INFINITY]
            masked[row] = NEGATIVE_INFINITY
            if len(usable):
                masked[row, usable] = logits[row, usable]
            else:
                masked[row, self.end_ids] = 0.0
        return masked

    def _slot(self, table: Table) -> int:
        """The slot of a table, written now if it has none."""
        name = id(table)
        if name in self._slots:
            self._slots.move_to_end(name)
            return self._slots[name]
        if not self._free:
            # every request uses at most one slot, so that one of the spare ones is unused
            unused = next(known for known, slot in self._slots.items() if not self._uses[slot])
            self._free.append(self._slots.pop(unused))
        slot = self._free.pop()
        arrays = tuple(torch.as_tensor(each).to(self._device) for each in (table.offset, table.token, table.following))
        row = torch.tensor([*(array.data_ptr() for array in arrays), 0], dtype=torch.int64)
        self.pointers[slot].copy_(row)
        # holding the table keeps its id from being given to another
        self._held[slot] = table, arrays
        self._slots[name] = slot
        return slot


def _allowed(table: Table, tokens: list[int]) -> torch.Tensor | None:
    """Ids that may follow `tokens`, None when all may."""
    node = 0
    for token in tokens:
        low, high = int(table.offset[node]), int(table.offset[node + 1])
        found = [int(table.following[place]) for place in range(low, high) if int(table.token[place]) == token]
        node = found[0] if found else FREE
        if node == FREE:
            return None
    return torch.as_tensor(table.token[int(table.offset[node]) : int(table.offset[node + 1])]).to(torch.int64)
