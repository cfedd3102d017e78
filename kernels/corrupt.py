"""Corruption of embedding rows at planned positions: checks, dispatch and the torch reference.

`e[t] <- corrupt(e[t]; kind, dims, rho, seed, position[t])` for every token whose slot is not 0; all other rows keep
their bits. Source: ECO, arXiv 2406.07933, with relative strength and counter-based noise.

    gauss      e[:n] += sigma * z,  sigma = rho * ||e|| / sqrt(n),  z ~ N(0, 1)
    zero_top   the n largest-magnitude dims become 0 (ties: lowest index first)
    flip_sign  e[:n] = -e[:n]
    erase      e = ||e|| * u, u a fixed unit vector of signs / sqrt(d); `dims`, `rho` and `seed` are not used

n = `dims`, or d when `dims` is 0 or larger than d. ||e|| is the float32 norm of the whole row.

Noise layout, the same in `corrupt_triton`: Philox-4x32-10, key = (low, high) words of the seed, counter =
(low, high) words of the absolute position, dim // 4, 0. Words (0, 1) give the normals of dims 4q and 4q+1 by
Box-Muller, words (2, 3) those of dims 4q+2 and 4q+3. The result depends on (seed, position, dim)
only, so that chunked prefill, recompute after preemption and every tensor-parallel rank see the same prompt.

A corrupted row is always finite: non-finite inputs count as 0 and results are clamped to the range of the dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KIND_CODES: dict[str, int] = {"none": 0, "gauss": 1, "zero_top": 2, "flip_sign": 3, "erase": 4}
MAX_WIDTH = 16384
# the erase direction is the same for every model, tenant and seed
ERASE_SEED = 0x5EED_0F_E2A5E
LARGEST = 3.0e38

Backend = Literal["auto", "torch", "triton"]

_MASK32 = 0xFFFFFFFF
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# bounds the temporaries of the reference to about 100 MB
_ELEMENTS_PER_PASS = 1 << 20


@dataclass(frozen=True, slots=True)
class CorruptionTable:
    """Parameters of S corruption slots in device memory; slot 0 is nothing and must never be set.

    kind, dims: int32 [S]; rho: float32 [S]; seed: int64 [S]; counts: int64 [S], corrupted tokens so far.
    """

    kind: Tensor
    dims: Tensor
    rho: Tensor
    seed: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, num_slots: int, device: torch.device | str = "cpu") -> CorruptionTable:
        """A table of `num_slots` slots (slot 0 included), all of them nothing."""
        if num_slots < 1:
            raise ValueError(f"a corruption table needs at least slot 0, got num_slots={num_slots}")
        return cls(
            kind=torch.zeros(num_slots, dtype=torch.int32, device=device),
            dims=torch.zeros(num_slots, dtype=torch.int32, device=device),
            rho=torch.zeros(num_slots, dtype=torch.float32, device=device),
            seed=torch.zeros(num_slots, dtype=torch.int64, device=device),
            counts=torch.zeros(num_slots, dtype=torch.int64, device=device),
        )

    @property
    def num_slots(self) -> int:
        return self.kind.shape[0]

    def set(self, slot: int, *, kind: str, dims: int = 0, rho: float = 0.0, seed: int = 0) -> None:
        """Write the parameters of one slot (asynchronous on the current stream). Raises ValueError."""
        if not 0 < slot < self.num_slots:
            raise ValueError(f"corruption slot {slot} is outside 1..{self.num_slots - 1}")
        if kind not in KIND_CODES or kind == "none":
            raise ValueError(f"unknown corruption kind {kind!r}; known: {', '.join(list(KIND_CODES)[1:])}")
        if not (math.isfinite(rho) and 0.0 <= rho <= LARGEST):
            raise ValueError(f"rho must be finite and >= 0, got {rho}")
        if dims < 0 or not 0 <= seed < 2**63:
            raise ValueError(f"dims must be >= 0 and seed in [0, 2**63), got dims={dims}, seed={seed}")
        self.dims[slot].fill_(min(dims, MAX_WIDTH))
        self.rho[slot].fill_(rho)
        self.seed[slot].fill_(seed)
        self.kind[slot].fill_(KIND_CODES[kind])

    def clear(self, slot: int) -> None:
        """Make one slot nothing again; its count stays."""
        self.kind[slot].fill_(0)


def corrupt(
    hidden: Tensor, token_slot: Tensor, position: Tensor, table: CorruptionTable, *, backend: Backend = "auto",
) -> None:
    """Corrupt in place the rows of `hidden` whose slot is not 0 and add them to `table.counts`.

    hidden: [T, d] float32, bfloat16 or float16, last dimension contiguous, d <= 16384. token_slot: int32 [>= T].
    position: int64 [>= T], absolute. Entries behind T are not read. Slots outside the table touch nothing.
    No synchronisation and no allocation on CUDA. Raises ValueError on wrong shapes or dtypes.
    """
    _check(hidden, token_slot, position)
    if hidden.shape[0] == 0:
        return
    if backend == "triton" or (backend == "auto" and hidden.is_cuda):
        from guard.kernels.corrupt_triton import launch_corrupt  # noqa: PLC0415 - triton is imported only where it runs

        launch_corrupt(hidden, token_slot, position, table)
        return
    corrupt_reference(hidden, token_slot, position, table)


def corrupt_reference(hidden: Tensor, token_slot: Tensor, position: Tensor, table: CorruptionTable) -> None:
    """The same as `corrupt` in plain torch; works on the touched rows only."""
    slots = token_slot[: hidden.shape[0]]
    touched = slots.nonzero().flatten()
    if touched.numel() == 0:
        return
    row_slot = slots[touched].long()
    known = (row_slot > 0) & (row_slot < table.num_slots)
    known &= table.kind[row_slot.clamp(0, table.num_slots - 1)] != 0
    touched, row_slot = touched[known], row_slot[known]
    rows_per_pass = max(1, _ELEMENTS_PER_PASS // hidden.shape[1])
    for start in range(0, touched.numel(), rows_per_pass):
        rows, slot = touched[start : start + rows_per_pass], row_slot[start : start + rows_per_pass]
        hidden[rows] = _corrupted(hidden[rows], slot, position[rows], table)
    table.counts.index_add_(0, row_slot, torch.ones_like(row_slot))


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10: four int64 tensors that hold uint32 words (broadcastable in, broadcast out).

    Source: Salmon et al., SC 2011; constants and vectors of Random123.
    """
    word0, word1, word2, word3 = torch.broadcast_tensors(*counter)
    # the two halves of a round side by side: half the operations
    even, odd = torch.stack((word0, word2)), torch.stack((word1, word3))
    shape = (2, *(1,) * word0.dim())
    multiplier = torch.tensor((0xD2511F53, 0xCD9E8D57), device=word0.device).view(shape)
    weyl = torch.tensor((0x9E3779B9, 0xBB67AE85), device=word0.device).view(shape)
    keys = torch.stack(torch.broadcast_tensors(*key))
    keys = keys.view(2, *(1,) * (word0.dim() - key[0].dim()), *key[0].shape)
    for turn in range(10):
        # int64 products wrap, but their low 64 bits are those of the unsigned product
        product = even * multiplier
        odd = odd.bitwise_xor_((keys + turn * weyl) & _MASK32)
        even = odd.bitwise_xor_((product >> 32).flip(0)).bitwise_and_(_MASK32)
        odd = product.bitwise_and_(_MASK32).flip(0)
    return even[0], odd[0], even[1], odd[1]


def normals(seed: Tensor, position: Tensor, width: int) -> Tensor:
    """Standard normals float32 [N, width] of rows with seeds int64 [N] at positions int64 [N]."""
    quads = torch.arange((width + 3) // 4, dtype=torch.int64, device=seed.device)[None, :]
    low, high = (position & _MASK32)[:, None], ((position >> 32) & _MASK32)[:, None]
    key = (seed & _MASK32)[:, None], ((seed >> 32) & _MASK32)[:, None]
    word0, word1, word2, word3 = philox((low, high, quads, torch.zeros_like(quads)), key)
    pairs = (*_box_muller(word0, word1), *_box_muller(word2, word3))
    return torch.stack(pairs, dim=-1).flatten(1)[:, :width]


def erase_signs(width: int, device: torch.device | str = "cpu") -> Tensor:
    """The signs float32 [width] of the erase direction: the lowest bit of each Philox word, 1 meaning minus."""
    quads = torch.arange((width + 3) // 4, dtype=torch.int64, device=device)
    zero = torch.zeros_like(quads)
    words = philox((zero, zero, quads, zero), (zero + (ERASE_SEED & _MASK32), zero + (ERASE_SEED >> 32)))
    bits = torch.stack(words, dim=-1).flatten()[:width] & 1
    return 1.0 - 2.0 * bits.float()


def _check(hidden: Tensor, token_slot: Tensor, position: Tensor) -> None:
    if hidden.dim() != 2 or hidden.dtype not in _DTYPES or not 1 <= hidden.shape[1] <= MAX_WIDTH:
        raise ValueError(
            f"hidden must be [T, d] in float32, bfloat16 or float16 with d <= {MAX_WIDTH}, "
            f"got {tuple(hidden.shape)} {hidden.dtype}"
        )
    if hidden.shape[0] and hidden.stride(1) != 1:
        raise ValueError("the last dimension of hidden must be contiguous")
    for name, tensor, dtype in (("token_slot", token_slot, torch.int32), ("position", position, torch.int64)):
        if tensor.dim() != 1 or tensor.dtype != dtype or tensor.shape[0] < hidden.shape[0]:
            raise ValueError(
                f"{name} must be {dtype} [>= {hidden.shape[0]}], got {tuple(tensor.shape)} {tensor.dtype}"
            )


def _corrupted(rows: Tensor, slot: Tensor, position: Tensor, table: CorruptionTable) -> Tensor:
    width = rows.shape[1]
    values = rows.float()
    values = torch.where(values.isfinite(), values, torch.zeros_like(values))
    # float64 sums make the norm independent of how a row is split over vector lanes
    norm = values.double().square().sum(dim=1).sqrt().clamp(max=LARGEST).float()
    kind, dims = table.kind[slot], table.dims[slot].long()
    count = torch.where((dims <= 0) | (dims > width), width, dims)
    for code in sorted(set(kind.tolist())):
        of_kind = (kind == code).nonzero().flatten()
        row, n = values[of_kind], count[of_kind]
        first = torch.arange(width, device=rows.device)[None, :] < n[:, None]
        if code == KIND_CODES["gauss"]:
            sigma = (table.rho[slot[of_kind]] * norm[of_kind] / n.float().sqrt()).clamp(max=LARGEST)
            noise = normals(table.seed[slot[of_kind]], position[of_kind], width)
            changed = torch.where(first, row + sigma[:, None] * noise, row)
        elif code == KIND_CODES["zero_top"]:
            order = row.abs().sort(dim=1, descending=True, stable=True).indices
            changed = row.masked_fill(torch.zeros_like(first).scatter_(1, order, first), 0.0)
        elif code == KIND_CODES["flip_sign"]:
            changed = torch.where(first, -row, row)
        else:
            changed = (norm[of_kind] / math.sqrt(width))[:, None] * erase_signs(width, rows.device)
        values[of_kind] = changed
    limit = torch.finfo(rows.dtype).max
    return values.clamp(-limit, limit).to(rows.dtype)


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    # 24-bit uniforms, the first in (0, 1]; float64 then float32, so that vector width cannot change a bit
    radius = ((first >> 8) + 1).double().mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
    angle = (second >> 8).double().mul_(2.0**-24 * 2.0 * math.pi)
    return (radius * angle.cos()).float(), (radius * angle.sin()).float()
