"""Triton kernel of `guard.kernels.edit` and its launcher; the formula is described in `guard.kernels.edit_formula`.

One launch per site and one program per token; a token without a lane costs one load. A program keeps its whole row in
registers, so that lanes compose without being rounded, and walks through the rows of the bank, a few at a time.

Where all 16 tokens of an aligned tile ask for the same single edit, the first program of the tile does it for all and
reads the bank once instead of 16 times (`guard.kernels.edit_tile`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from guard.kernels.edit import EditBank
from guard.kernels.edit_tile import edit_tile, norm_factor

TILE = 16


@triton.jit  # type: ignore[untyped-decorator]
def _lane(  # type: ignore[no-untyped-def]
    x, column, inside, scale, shift, read, write, bias, gain, offset, threshold, entry, strength, rank, part,
    WIDTH: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):
    """x' of one lane for a whole row x [BLOCK] in float32; ROWS rows of the bank at a time."""
    affine = column < tl.where((part & 2) != 0, WIDTH, 0)
    delta = tl.load(scale + entry * WIDTH + column, mask=affine, other=0.0).to(tl.float32) * x
    delta += tl.load(shift + entry * WIDTH + column, mask=affine, other=0.0).to(tl.float32)
    if rank > 0:
        step = tl.arange(0, RANK // ROWS)
        row = tl.arange(0, ROWS)
        groups = tl.cdiv(rank, ROWS)
        z = tl.zeros((RANK // ROWS, ROWS), dtype=tl.float32)
        for group in tl.range(0, groups, num_stages=STAGES):
            number = group * ROWS + row
            place = (entry * RANK + number[:, None]) * WIDTH + column[None, :]
            matrix = tl.load(read + place, mask=(number < rank)[:, None] & inside[None, :], other=0.0)
            part_z = tl.sum(matrix.to(tl.float32) * x[None, :], axis=1)
            z = tl.where((step == group)[:, None], part_z[None, :], z)
        numbers = step[:, None] * ROWS + row[None, :]
        used = numbers < rank
        z += tl.load(bias + entry * RANK + numbers)
        fires = (z > tl.load(threshold + entry * RANK + numbers)) & used
        gate = fires
        if (part & 4) != 0:
            gate = numbers < rank * tl.max(tl.max(fires.to(tl.int32), axis=1), axis=0)
        amount = tl.load(gain + entry * RANK + numbers) * tl.where(fires, z, 0.0)
        amount = tl.where(gate, amount + tl.load(offset + entry * RANK + numbers), 0.0)
        for group in tl.range(0, groups, num_stages=STAGES):
            number = group * ROWS + row
            place = (entry * RANK + number[:, None]) * WIDTH + column[None, :]
            matrix = tl.load(write + place, mask=(number < rank)[:, None] & inside[None, :], other=0.0)
            factor = tl.sum(tl.where((step == group)[:, None], amount, 0.0), axis=0)
            delta += tl.sum(matrix.to(tl.float32) * factor[:, None], axis=0)
    after = x + strength * delta
    if (part & 8) != 0:
        changed = tl.sum((after != x).to(tl.int32), axis=0)
        after *= norm_factor(tl.sum(x * x, axis=0), tl.sum(after * after, axis=0), changed)
    return after


@triton.jit  # type: ignore[untyped-decorator]
def _edit_token(  # type: ignore[no-untyped-def]
    hidden, residual, scale, shift, read, write, bias, gain, offset, threshold, rank_table, parts_table, counts,
    token, first_entry, slot, strength, hidden_stride, residual_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    RANK: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):
    """Edit one token by the lanes slot [4] with strength [4]; `first_entry` is the entry of slot 0 of this site."""
    lane = tl.arange(0, 4)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    pointer = hidden + token * hidden_stride + column
    x = tl.load(pointer, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual + token * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
    for number in range(0, 4):
        chosen = tl.sum(tl.where(lane == number, slot, 0), axis=0)
        if chosen > 0:
            entry = first_entry + chosen
            amount = tl.sum(tl.where(lane == number, strength, 0.0), axis=0)
            x = _lane(
                x, column, inside, scale, shift, read, write, bias, gain, offset, threshold, entry, amount,
                tl.load(rank_table + entry), tl.load(parts_table + entry), WIDTH, RANK, ROWS, STAGES,
            )
            tl.atomic_add(counts + entry, tl.full((), 1, dtype=tl.int64), sem="relaxed")
    if HAS_RESIDUAL:
        # the change, not x - residual: a dimension that nothing moves keeps its bits
        before = tl.load(pointer, mask=inside, other=0.0).to(tl.float32)
        total = before + tl.load(residual + token * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        x = before + (x - total)
    tl.store(pointer, x.to(hidden.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _alike(  # type: ignore[no-untyped-def]
    token_lane, token_strength, lane_stride, strength_stride, first, num_tokens, slot, strength, TILE: tl.constexpr,
):
    """Whether all tokens of the tile have the lanes slot [4] with strength [4]; the last tile may be a part of one."""
    lane = tl.arange(0, 4)
    token = first + tl.arange(0, TILE)
    there = (token < num_tokens)[None, :]
    slots = tl.load(token_lane + lane[:, None] * lane_stride + token[None, :], mask=there, other=0)
    place = lane[:, None] * strength_stride + token[None, :]
    strengths = tl.load(token_strength + place, mask=there, other=0.0)
    same = (slots == slot[:, None]) & ((slots == 0) | (strengths == strength[:, None]))
    return tl.sum(tl.sum(same.to(tl.int32), axis=1), axis=0) == 4 * TILE


# a new number of tokens must not compile the kernel again
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["lane_stride", "strength_stride", "num_tokens", "num_sites", "num_slots"]
)
def edit_kernel(  # type: ignore[no-untyped-def]
    hidden, residual, site, token_lane, token_strength, scale, shift, read, write, bias, gain, offset, threshold,
    rank_table, parts_table, counts, hidden_stride, residual_stride, lane_stride, strength_stride, num_tokens,
    num_sites, num_slots,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
    SLICES: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, PIECE: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):
    token = tl.program_id(0)
    lane = tl.arange(0, 4)
    wanted = tl.load(token_lane + lane * lane_stride + token)
    index = tl.load(site)
    slot = tl.where((wanted > 0) & (wanted < num_slots) & (index >= 0) & (index < num_sites), wanted, 0)
    if tl.max(slot, axis=0) > 0:
        part = tl.load(parts_table + index * num_slots + slot, mask=slot > 0, other=0)
        slot = tl.where((part & 1) != 0, slot, 0)
        active = tl.sum((slot > 0).to(tl.int32), axis=0)
        strength = tl.load(token_strength + lane * strength_stride + token)
        first = (token // TILE) * TILE
        alike = _alike(
            token_lane, token_strength, lane_stride, strength_stride, first, num_tokens, wanted, strength, TILE
        )
        first_entry = (index * num_slots).to(tl.int64)
        if (active == 1) & alike:
            if token == first:
                entry = first_entry + tl.max(slot, axis=0)
                amount = tl.sum(tl.where(slot > 0, strength, 0.0), axis=0)
                edit_tile(
                    hidden, residual, scale, shift, read, write, bias, gain, offset, threshold, first, entry, amount,
                    tl.load(rank_table + entry), tl.load(parts_table + entry), hidden_stride, residual_stride,
                    WIDTH, RANK, TILE, SLICES, CHUNK, PIECE, HAS_RESIDUAL,
                )
                tl.atomic_add(counts + entry, tl.full((), TILE, dtype=tl.int64), sem="relaxed")
        elif active > 0:
            _edit_token(
                hidden, residual, scale, shift, read, write, bias, gain, offset, threshold, rank_table, parts_table,
                counts, token.to(tl.int64), first_entry, slot, strength, hidden_stride, residual_stride,
                WIDTH, BLOCK, RANK, ROWS, STAGES, HAS_RESIDUAL,
            )


def launch_options(width: int, max_rank: int, bank_dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time choices of the kernel for one shape of the bank; `num_warps` is among them."""
    block = max(64, triton.next_power_of_2(width))
    warps = 4 if block <= 1024 else 8 if block <= 8192 else 16
    row_bytes = block * bank_dtype.itemsize
    # some 16 kB of the bank in flight per stage
    rows = 4 if row_bytes <= 4096 else 2 if row_bytes <= 8192 else 1
    return {
        "WIDTH": width, "BLOCK": block, "RANK": max_rank, "ROWS": rows, "STAGES": 3 if row_bytes * rows <= 16384 else 2,
        "SLICES": warps, "CHUNK": 32 if bank_dtype == torch.bfloat16 else 16, "TILE": TILE,
        # Triton's interpreter multiplies the bit patterns of bfloat16
        "PIECE": tl.bfloat16 if isinstance(edit_kernel, triton.JITFunction) else tl.float32, "num_warps": warps,
    }


def launch_edit(
    hidden: Tensor, residual: Tensor | None, site: Tensor, token_lane: Tensor, token_strength: Tensor, bank: EditBank,
) -> None:
    """Launch over all rows of `hidden` [T, d]; arguments as in `guard.kernels.edit.edit`, already checked."""
    num_tokens, width = hidden.shape
    given = hidden if residual is None else residual
    edit_kernel[(num_tokens,)](
        hidden, given, site, token_lane, token_strength, bank.scale, bank.shift, bank.read, bank.write, bank.bias,
        bank.gain, bank.offset, bank.threshold, bank.rank, bank.parts, bank.counts, hidden.stride(0), given.stride(0),
        token_lane.stride(0), token_strength.stride(0), num_tokens, bank.num_sites, bank.num_slots,
        HAS_RESIDUAL=residual is not None, **launch_options(width, bank.max_rank, bank.read.dtype),
    )
