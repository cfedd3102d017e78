"""The device op `guard::corrupt` and the persistent memory that it reads.

The op is part of the compiled model and is replayed by CUDA graphs without Python, so all that changes from step to
step (slots, positions, parameters) lives in tensors that are allocated once per process, before the model is compiled.
The op mutates `hidden` in place, takes the site as a tensor (a Python number would make every compiled piece unique),
is launched unconditionally and leaves rows of slot 0 untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guard.errors import EngineMismatchError
from guard.kernels.corrupt import CorruptionTable, corrupt
from guard.kernels.route import RouteTable

SCHEMA = "corrupt(Tensor(a!) hidden, Tensor site) -> ()"
NAMESPACE = "guard"


@dataclass(frozen=True, slots=True)
class EngineBuffers:
    """Device memory of one worker process.

    token_slot: int32 [C], corruption slot of every token row of the step, 0 = untouched; token_position: int64 [C],
    absolute. C is the largest padded step. `routes` is indexed by request slot, `corruption` by request slot + 1.
    """

    token_slot: Tensor
    token_position: Tensor
    routes: RouteTable
    corruption: CorruptionTable

    @classmethod
    def allocate(cls, num_tokens: int, num_requests: int, device: torch.device) -> EngineBuffers:
        """Buffers for steps of at most `num_tokens` padded tokens and `num_requests` requests."""
        return cls(
            token_slot=torch.zeros(num_tokens, dtype=torch.int32, device=device),
            token_position=torch.zeros(num_tokens, dtype=torch.int64, device=device),
            routes=RouteTable.empty(num_requests, device),
            corruption=CorruptionTable.empty(num_requests + 1, device),
        )

    def clear_step(self) -> None:
        """No row of the next forward carries a slot."""
        self.token_slot.zero_()


class _Process:
    """The op finds its memory here: a compiled graph cannot carry it."""

    library: torch.library.Library | None = None
    buffers: EngineBuffers | None = None


def register() -> None:
    """Register the op once per process. Raises EngineMismatchError when another build has registered it differently."""
    if _Process.library is not None:
        return
    if hasattr(torch.ops.guard, "corrupt"):
        raise EngineMismatchError("torch op guard::corrupt is already registered by another package")
    library: Any = torch.library.Library(NAMESPACE, "FRAGMENT")
    library.define(SCHEMA)
    library.impl("corrupt", _corrupt, "CPU")
    library.impl("corrupt", _corrupt, "CUDA")
    library._register_fake("corrupt", _corrupt_fake)
    _Process.library = library


def install(buffers: EngineBuffers) -> None:
    """Make `buffers` the memory of this process; call it before the model is compiled, and once."""
    _Process.buffers = buffers


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
