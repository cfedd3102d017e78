"""The device ops `guard::corrupt` and `guard::edit` and the persistent memory that they read.

The ops are part of the compiled model and are replayed by CUDA graphs without Python, so all that changes from step to
step (slots, positions, parameters) lives in tensors that are allocated once per process, before the model is compiled.
They mutate `hidden` in place, take the site as a tensor (a Python number would make every compiled piece unique), are
launched unconditionally and leave rows of slot 0 untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guard.errors import EngineMismatchError
from guard.kernels.corrupt import CorruptionTable, corrupt
from guard.kernels.edit import EditBank, edit
from guard.kernels.route import RouteTable
from guard.plan import MAX_LANES

SCHEMAS = (
    "corrupt(Tensor(a!) hidden, Tensor site) -> ()",
    "edit(Tensor(a!) hidden, Tensor? residual, Tensor site) -> ()",
)
NAMESPACE = "guard"


@dataclass(frozen=True, slots=True)
class EngineBuffers:
    """Device memory of one worker process.

    token_slot: int32 [C], corruption slot of every token row of the step, 0 = untouched; token_position: int64 [C],
    absolute; token_lane: int32 [4, C], bank slots of the token's lanes of edits; token_strength: float32 [4, C]. C is
    the largest padded step. `routes` is indexed by request slot, `corruption` by request slot + 1. `edits` is None in
    an engine without steerable sites.
    """

    token_slot: Tensor
    token_position: Tensor
    token_lane: Tensor
    token_strength: Tensor
    routes: RouteTable
    corruption: CorruptionTable
    edits: EditBank | None = None

    @classmethod
    def allocate(
        cls, num_tokens: int, num_requests: int, device: torch.device, edits: EditBank | None = None,
    ) -> EngineBuffers:
        """Buffers for steps of at most `num_tokens` padded tokens and `num_requests` requests."""
        return cls(
            token_slot=torch.zeros(num_tokens, dtype=torch.int32, device=device),
            token_position=torch.zeros(num_tokens, dtype=torch.int64, device=device),
            token_lane=torch.zeros(MAX_LANES, num_tokens, dtype=torch.int32, device=device),
            token_strength=torch.zeros(MAX_LANES, num_tokens, dtype=torch.float32, device=device),
            routes=RouteTable.empty(num_requests, device),
            corruption=CorruptionTable.empty(num_requests + 1, device),
            edits=edits,
        )

    def clear_step(self) -> None:
        """No row of the next forward carries a slot."""
        self.token_slot.zero_()
        self.token_lane.zero_()


class _Process:
    """The op finds its memory here: a compiled graph cannot carry it."""

    library: torch.library.Library | None = None
    buffers: EngineBuffers | None = None
    # whether a token of the step carries a lane; read on CPUs only, because a CUDA graph replays without Python
    lanes_marked: bool = False


def register() -> None:
    """Register the ops once per process. Raises EngineMismatchError when another build has registered them."""
    if _Process.library is not None:
        return
    if hasattr(torch.ops.guard, "corrupt") or hasattr(torch.ops.guard, "edit"):
        raise EngineMismatchError("the torch ops of the guard are already registered by another package")
    library: Any = torch.library.Library(NAMESPACE, "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    for name, implementation, fake in (("corrupt", _corrupt, _corrupt_fake), ("edit", _edit, _edit_fake)):
        library.impl(name, implementation, "CPU")
        library.impl(name, implementation, "CUDA")
        library._register_fake(name, fake)
    _Process.library = library


def install(buffers: EngineBuffers) -> None:
    """Make `buffers` the memory of this process; call it before the model is compiled, and once."""
    _Process.buffers = buffers
    _Process.lanes_marked = False


def mark_lanes(marked: bool) -> None:
    """Tell the CPU implementation whether any token of the next forward carries a lane."""
    _Process.lanes_marked = marked


def installed() -> EngineBuffers:
    """The memory of this process. Raises EngineMismatchError before `install`."""
    if _Process.buffers is None:
        raise EngineMismatchError("the guard's buffers are not allocated; the engine was not started with GuardWorker")
    return _Process.buffers


def _corrupt(hidden: Tensor, site: Tensor) -> None:
    buffers = _Process.buffers
    if buffers is None:
        raise EngineMismatchError("guard::corrupt ran before its buffers were allocated")
    # a view, never a copy: the edit must reach the caller's memory (some backends pass [1, T, d])
    rows = hidden.view(-1, hidden.shape[-1])  # [T, d]
    corrupt(rows, buffers.token_slot, buffers.token_position, buffers.corruption)


def _corrupt_fake(hidden: Tensor, site: Tensor) -> None:
    return None


def _edit(hidden: Tensor, residual: Tensor | None, site: Tensor) -> None:
    buffers = _Process.buffers
    if buffers is None or buffers.edits is None:
        raise EngineMismatchError("guard::edit ran before its buffers were allocated")
    if not _Process.lanes_marked and not hidden.is_cuda:
        return
    width = hidden.shape[-1]
    rows = hidden.view(-1, width)  # [T, d]
    stream = None if residual is None else residual.view(-1, width)
    edit(rows, stream, site, buffers.token_lane, buffers.token_strength, buffers.edits)


def _edit_fake(hidden: Tensor, residual: Tensor | None, site: Tensor) -> None:
    return None
