"""Activation edits of a step's tokens at one site: the bank of interventions, checks, dispatch and the torch reference.

`hidden[t] <- x' - residual[t]` with x = hidden[t] + residual[t] and x' of the formula in `guard.kernels.edit_formula`,
for every lane of token t in turn (lane 1 works on the result of lane 0). All of it is float32; only the last value is
rounded to the dtype of `hidden`. A token without a lane keeps its bits, and so does every dimension that no lane moves;
a lane that keeps the norm moves all dimensions or, where its edit changes nothing, none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from guard.kernels import edit_cpu
from guard.kernels.edit_formula import MAX_RANK, EditRow, norm_factor

LANES = 4
MAX_WIDTH = 16384
# bits of EditBank.parts
RESIDENT, AFFINE, ANY_GATE, KEEP_NORM = 1, 2, 4, 8

Backend = Literal["auto", "torch", "native", "triton"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BANK_DTYPES = (torch.float32, torch.bfloat16)
# bounds the temporaries of the reference
_ELEMENTS_PER_PASS = 1 << 20
# from this many tokens of one slot on, a matrix product of its own is quicker than gathering its rows
_TOKENS_PER_PRODUCT = 3


@dataclass(frozen=True, slots=True)
class EditBank:
    """Interventions in S slots at K sites in device memory; slot 0 is nothing and must never be set.

    scale, shift: [K, S, d]; read, write: [K, S, R, d], bfloat16 or float32. bias, gain, offset, threshold: float32
    [K, S, R]. rank: int32 [K, S], rows in use. parts: int32 [K, S], 0 nothing, else RESIDENT, with AFFINE where there
    is a scale or a shift, ANY_GATE for the gate "any" and KEEP_NORM for edits that keep the norm. counts: int64 [K, S],
    edited tokens so far.
    """

    scale: Tensor
    shift: Tensor
    read: Tensor
    write: Tensor
    bias: Tensor
    gain: Tensor
    offset: Tensor
    threshold: Tensor
    rank: Tensor
    parts: Tensor
    counts: Tensor

    @classmethod
    def empty(
        cls, num_sites: int, num_slots: int, width: int, max_rank: int, dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> EditBank:
        """A bank of nothing. `num_slots` includes slot 0; `max_rank` is padded to 16 or 32. Raises ValueError."""
        if num_sites < 1 or num_slots < 1 or not 1 <= width <= MAX_WIDTH or not 0 <= max_rank <= MAX_RANK:
            raise ValueError(
                f"an edit bank needs sites, slots, a width in 1..{MAX_WIDTH} and a rank <= {MAX_RANK}, got "
                f"{num_sites}, {num_slots}, {width} and {max_rank}"
            )
        if dtype not in _BANK_DTYPES:
            raise ValueError(f"an edit bank is bfloat16 or float32, not {dtype}")
        rows = 16 if max_rank <= 16 else 32
        pair = (num_sites, num_slots)

        def zeros(*shape: int, of: torch.dtype = dtype) -> Tensor:
            return torch.zeros(*pair, *shape, dtype=of, device=device)

        return cls(
            scale=zeros(width), shift=zeros(width), read=zeros(rows, width), write=zeros(rows, width),
            bias=zeros(rows, of=torch.float32), gain=zeros(rows, of=torch.float32),
            offset=zeros(rows, of=torch.float32), threshold=zeros(rows, of=torch.float32),
            rank=zeros(of=torch.int32), parts=zeros(of=torch.int32), counts=zeros(of=torch.int64),
        )

    @property
    def num_sites(self) -> int:
        return self.parts.shape[0]

    @property
    def num_slots(self) -> int:
        return self.parts.shape[1]

    @property
    def width(self) -> int:
        return self.scale.shape[2]

    @property
    def max_rank(self) -> int:
        return self.bias.shape[2]

    @property
    def size_bytes(self) -> int:
        """Device memory of all tensors."""
        return sum(getattr(self, name).nbytes for name in self.__slots__)

    def set(self, site: int, slot: int, row: EditRow) -> None:
        """Write one intervention (asynchronous on the current stream). Raises ValueError when it does not fit."""
        if not 0 <= site < self.num_sites:
            raise ValueError(f"edit site {site} is outside 0..{self.num_sites - 1}")
        if not 0 < slot < self.num_slots:
            raise ValueError(f"edit slot {slot} is outside 1..{self.num_slots - 1}")
        row.check()
        if row.width != self.width or row.rank > self.max_rank:
            raise ValueError(
                f"a row of width {row.width} and rank {row.rank} does not fit a bank of width {self.width} and rank "
                f"{self.max_rank}"
            )
        parts = RESIDENT
        for name in ("scale", "shift", "read", "write", "bias", "gain", "offset", "threshold"):
            given, kept = getattr(row, name), getattr(self, name)[site, slot]
            if given is None:
                kept.zero_()
                continue
            stored = given.detach().to(kept.dtype)
            if not bool(stored.isfinite().all()):
                raise ValueError(f"{name} exceeds the range of {kept.dtype}")
            kept[: stored.shape[0]].copy_(stored, non_blocking=True)
            parts |= AFFINE if name in ("scale", "shift") else 0
        self.rank[site, slot].fill_(row.rank)
        parts |= (ANY_GATE if row.any_gate else 0) | (KEEP_NORM if row.keep_norm else 0)
        self.parts[site, slot].fill_(parts)

    def clear(self, slot: int) -> None:
        """Make one slot nothing at every site; its counts stay. Raises ValueError."""
        if not 0 < slot < self.num_slots:
            raise ValueError(f"edit slot {slot} is outside 1..{self.num_slots - 1}")
        self.parts[:, slot].fill_(0)


def edit(
    hidden: Tensor, residual: Tensor | None, site: Tensor, token_lane: Tensor, token_strength: Tensor, bank: EditBank,
    *, backend: Backend = "auto",
) -> None:
    """Edit `hidden` in place at one site and add the edited tokens to `bank.counts`.

    hidden: [T, d] float32, bfloat16 or float16, last dimension contiguous; residual: the same shape or None, the edited
    activation is the sum of both. site: int32 [1], index of the site in the bank. token_lane: int32 [4, >= T], slots,
    0 for none. token_strength: float32 [4, >= T]. Entries behind T are not read. Slots outside the bank and slots
    that are not resident at this site touch nothing.
    No synchronisation and no allocation on CUDA. Raises ValueError on wrong shapes or dtypes.
    """
    _check(hidden, residual, site, token_lane, token_strength, bank)
    if hidden.shape[0] == 0:
        return
    if backend == "triton" or (backend == "auto" and hidden.is_cuda):
        from guard.kernels.edit_triton import launch_edit  # noqa: PLC0415 - triton is imported only where it runs

        launch_edit(hidden, residual, site, token_lane, token_strength, bank)
        return
    if backend == "native" or (backend == "auto" and edit_cpu.works(hidden, residual)):
        edit_cpu.launch_edit(hidden, residual, site, token_lane, token_strength, bank)
        return
    edit_reference(hidden, residual, site, token_lane, token_strength, bank)


def edit_reference(
    hidden: Tensor, residual: Tensor | None, site: Tensor, token_lane: Tensor, token_strength: Tensor, bank: EditBank,
) -> None:
    """The same as `edit` in plain torch; works on the edited rows only."""
    lanes = token_lane[:, : hidden.shape[0]]
    if not bool(lanes.any()):
        return
    index = int(site)
    if not 0 <= index < bank.num_sites:
        return
    resident = bank.parts[index] & RESIDENT
    known = (lanes > 0) & (lanes < bank.num_slots)
    slots = torch.where(known, lanes, 0).long()
    slots *= resident[slots]
    touched = slots.any(dim=0).nonzero().flatten()
    # neighbours of one slot share a matrix product
    touched = touched[slots[0, touched].argsort(stable=True)]
    used = int(slots.any(dim=1).nonzero().max()) + 1 if touched.numel() else 0
    for rows in touched.split(max(1, _ELEMENTS_PER_PASS // bank.width)):
        edited = hidden.index_select(0, rows).float()
        value = edited if residual is None else edited + residual.index_select(0, rows)
        for lane in range(used):
            slot = slots[lane].index_select(0, rows)
            # the edited rows, those of one slot side by side; lane 0 is sorted already
            moved = slot.argsort(stable=True)[int((slot == 0).sum()) :]
            if moved.numel() == 0:
                continue
            strength = token_strength[lane, rows[moved]]
            whole = lane == 0 and moved.numel() == rows.numel()
            delta = _delta(value if whole else value[moved], slot if whole else slot[moved], strength, index, bank)
            if residual is not None and lane + 1 < used:
                value = value.index_add(0, moved, delta)
            edited = edited.add_(delta) if whole else edited.index_add_(0, moved, delta)
        hidden.index_copy_(0, rows, edited.to(hidden.dtype))
    slots = slots[slots > 0]
    bank.counts[index].index_add_(0, slots, torch.ones_like(slots))


def _check(
    hidden: Tensor, residual: Tensor | None, site: Tensor, token_lane: Tensor, token_strength: Tensor, bank: EditBank,
) -> None:
    if hidden.dim() != 2 or hidden.dtype not in _DTYPES or hidden.shape[1] != bank.width:
        raise ValueError(
            f"hidden must be [T, {bank.width}] in float32, bfloat16 or float16, "
            f"got {tuple(hidden.shape)} {hidden.dtype}"
        )
    if residual is not None and (residual.shape != hidden.shape or residual.dtype not in _DTYPES):
        raise ValueError(
            f"residual must be {tuple(hidden.shape)} in float32, bfloat16 or float16, "
            f"got {tuple(residual.shape)} {residual.dtype}"
        )
    for name, tensor in (("hidden", hidden), ("residual", residual)):
        if tensor is not None and tensor.shape[0] and tensor.stride(1) != 1:
            raise ValueError(f"the last dimension of {name} must be contiguous")
    if site.shape != (1,) or site.dtype != torch.int32:
        raise ValueError(f"site must be int32 [1], got {tuple(site.shape)} {site.dtype}")
    lanes = (("token_lane", token_lane, torch.int32), ("token_strength", token_strength, torch.float32))
    for name, tensor, dtype in lanes:
        fits = tensor.dim() == 2 and tensor.shape[0] == LANES and tensor.shape[1] >= hidden.shape[0]
        if not fits or tensor.dtype != dtype or (tensor.shape[1] and tensor.stride(1) != 1):
            raise ValueError(
                f"{name} must be {dtype} [{LANES}, >= {hidden.shape[0]}] with contiguous rows, "
                f"got {tuple(tensor.shape)} {tensor.dtype}"
            )


def _delta(value: Tensor, slot: Tensor, strength: Tensor, site: int, bank: EditBank) -> Tensor:
    """What one lane adds to value [n, d] float32; slot int64 [n], sorted and all resident; strength float32 [n]."""
    delta = _plain_delta(value, slot, strength, site, bank)
    kept = (bank.parts[site, slot] & KEEP_NORM != 0).nonzero().flatten()
    if kept.numel():
        x, moved = value[kept], delta[kept]
        factor = norm_factor(x, x + moved)
        # the result is factor * (x + moved); a factor of 1 leaves the bits of what was moved
        delta[kept] = factor * moved + (factor - 1.0) * x
    return delta


def _plain_delta(value: Tensor, slot: Tensor, strength: Tensor, site: int, bank: EditBank) -> Tensor:
    """The same before a norm is kept: a matrix product for each slot with many tokens, gathered rows of the bank for
    all others."""
    distinct, sizes = slot.unique_consecutive(return_counts=True)
    delta = torch.empty_like(value)
    few: list[int] = []
    start = 0
    for number, size in zip(distinct.tolist(), sizes.tolist(), strict=True):
        group = slice(start, start + size)
        if size >= _TOKENS_PER_PRODUCT:
            one_slot = partial(_slot, site=site, slot=number)
            delta[group] = _rows_delta(value[None, group], strength[None, group], one_slot, bank)[0]
        else:
            few.extend(range(start, start + size))
        start += size
    step = max(1, _ELEMENTS_PER_PASS // (bank.width * bank.max_rank))
    for rows in torch.tensor(few, dtype=torch.int64, device=slot.device).split(step):
        if rows.numel():
            gathered = partial(_gathered, site=site, slots=slot[rows])
            delta[rows] = _rows_delta(value[rows, None], strength[rows, None], gathered, bank)[:, 0]
    return delta


def _slot(part: Tensor, *, site: int, slot: int) -> Tensor:
    return part[site, slot : slot + 1]


def _gathered(part: Tensor, *, site: int, slots: Tensor) -> Tensor:
    # several times quicker than indexing with a tensor
    return part[site].index_select(0, slots)


def _rows_delta(value: Tensor, strength: Tensor, rows: Callable[[Tensor], Tensor], bank: EditBank) -> Tensor:
    """Delta of value [n, m, d]: m tokens of each of n slots, whose part of a bank tensor `rows` picks."""
    parts, rank = rows(bank.parts), int(rows(bank.rank).max())
    affine = (parts & AFFINE) != 0
    delta = None
    if bool(affine.any()):
        delta = torch.addcmul(rows(bank.shift).float()[:, None], value, rows(bank.scale).float()[:, None])
        delta.masked_fill_(~affine[:, None, None], 0.0).mul_(strength[..., None])
    if rank:
        z = torch.bmm(value, rows(bank.read).float().transpose(1, 2)).add_(rows(bank.bias)[:, None])
        inside = (torch.arange(bank.max_rank, device=value.device) < rows(bank.rank)[:, None])[:, None]
        fires = (z > rows(bank.threshold)[:, None]) & inside
        every = (parts & ANY_GATE != 0)[:, None, None]
        gate = torch.where(every, fires.any(dim=2, keepdim=True) & inside, fires)
        amount = rows(bank.gain)[:, None] * z.masked_fill(~fires, 0.0) + rows(bank.offset)[:, None]
        amount.masked_fill_(~gate, 0.0).mul_(strength[..., None])
        write = rows(bank.write).float()
        if not bool(inside.all()):
            # rows that are not in use may hold anything
            write = write.masked_fill(~inside.transpose(1, 2), 0.0)
        delta = torch.bmm(amount, write) if delta is None else delta.baddbmm_(amount, write)
    return torch.zeros_like(value) if delta is None else delta
