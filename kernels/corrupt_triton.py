"""Triton kernel of `guard.kernels.corrupt` and its launcher; the maths and the noise layout are described there.

One program per token; a token of slot 0 costs one load. The whole row lies in one tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from guard.kernels.corrupt import ERASE_SEED, CorruptionTable

_LARGEST_OF = {torch.float32: 3.4028234663852886e38, torch.bfloat16: 3.3895313892515355e38, torch.float16: 65504.0}


@triton.jit
def _box_muller(first, second):  # type: ignore[no-untyped-def]
    radius_uniform = ((first >> 8) + 1).to(tl.float32) * 5.9604644775390625e-08
    angle = (second >> 8).to(tl.float32) * 5.9604644775390625e-08 * 6.283185307179586
    radius = tl.sqrt(-2.0 * tl.log(radius_uniform))
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _interleave4(a, b, c, d):  # type: ignore[no-untyped-def]
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit  # type: ignore[untyped-decorator]
def _top_mask(value, column, n, inside, WIDTH_BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Mask of the n largest magnitudes, ties by lowest index: the n-th largest bit pattern, bit by bit."""
    bits = tl.abs(value).to(tl.int32, bitcast=True)
    # padding lanes sort below every magnitude
    bits = tl.where(inside, bits, -1)
    threshold = tl.zeros((), dtype=tl.int32)
    for step in range(0, 31):
        candidate = threshold | (tl.full((), 1, dtype=tl.int32) << (30 - step))
        enough = tl.sum((bits >= candidate).to(tl.int32), axis=0) >= n
        threshold = tl.where(enough, candidate, threshold)
    above = bits > threshold
    tied = bits == threshold
    wanted = n - tl.sum(above.to(tl.int32), axis=0)
    # the largest index bound such that fewer than or exactly `wanted` ties lie below it
    bound = tl.zeros((), dtype=tl.int32)
    for step in range(0, WIDTH_BITS + 1):
        candidate = bound | (tl.full((), 1, dtype=tl.int32) << (WIDTH_BITS - step))
        fits = tl.sum((tied & (column < candidate)).to(tl.int32), axis=0) <= wanted
        bound = tl.where(fits, candidate, bound)
    return above | (tied & (column < bound))


@triton.jit  # type: ignore[untyped-decorator]
def corrupt_kernel(  # type: ignore[no-untyped-def]
    hidden, token_slot, position, kind_table, dims_table, rho_table, seed_table, counts,
    row_stride, num_slots, largest, erase_seed,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, WIDTH_BITS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(token_slot + token)
    if (slot > 0) & (slot < num_slots):
        kind = tl.load(kind_table + slot)
        if kind != 0:
            column = tl.arange(0, BLOCK)
            inside = column < WIDTH
            pointer = hidden + token * row_stride + column
            value = tl.load(pointer, mask=inside, other=0.0).to(tl.float32)
            # NaN and infinity fail this comparison and count as 0
            value = tl.where(tl.abs(value) <= 3.4028234663852886e38, value, 0.0)
            norm = tl.minimum(tl.sqrt(tl.sum(value * value, axis=0)), 3.0e38)
            n = tl.load(dims_table + slot)
            n = tl.where((n <= 0) | (n > WIDTH), WIDTH, n)
            first = column < n
            if kind == 2:
                value = tl.where(_top_mask(value, column, n, inside, WIDTH_BITS), 0.0, value)
            elif kind == 3:
                value = tl.where(first, -value, value)
            else:
                quad = tl.arange(0, BLOCK // 4)
                where = tl.load(position + token)
                seed = tl.load(seed_table + slot)
                if kind == 4:
                    where = where * 0
                    seed = seed * 0 + erase_seed
                zero = quad * 0
                word0, word1, word2, word3 = tl.philox(
                    seed, zero + (where & 0xFFFFFFFF).to(tl.uint32), zero + (where >> 32).to(tl.uint32),
                    quad.to(tl.uint32), zero.to(tl.uint32),
                )
                if kind == 4:
                    bit = (_interleave4(word0, word1, word2, word3) & 1).to(tl.float32)
                    value = (norm / tl.sqrt(WIDTH * 1.0)) * (1.0 - 2.0 * bit)
                else:
                    normal0, normal1 = _box_muller(word0, word1)
                    normal2, normal3 = _box_muller(word2, word3)
                    sigma = tl.load(rho_table + slot) * norm / tl.sqrt(n.to(tl.float32))
                    noise = tl.minimum(sigma, 3.0e38) * _interleave4(normal0, normal1, normal2, normal3)
                    value = tl.where(first, value + noise, value)
            value = tl.minimum(tl.maximum(value, -largest), largest)
            tl.store(pointer, value.to(hidden.dtype.element_ty), mask=inside)
            one = tl.full((), 1, dtype=tl.int64)
            tl.atomic_add(counts + slot, one, sem="relaxed")


def launch_corrupt(hidden: Tensor, token_slot: Tensor, position: Tensor, table: CorruptionTable) -> None:
    """Launch over all rows of `hidden` [T, d]; arguments as in `guard.kernels.corrupt.corrupt`, already checked."""
    num_tokens, width = hidden.shape
    block = max(16, triton.next_power_of_2(width))
    corrupt_kernel[(num_tokens,)](
        hidden, token_slot, position, table.kind, table.dims, table.rho, table.seed, table.counts,
        hidden.stride(0), table.num_slots, _LARGEST_OF[hidden.dtype], ERASE_SEED,
        WIDTH=width, BLOCK=block, WIDTH_BITS=block.bit_length() - 1,
        num_warps=4 if block <= 2048 else 8 if block <= 8192 else 16,
    )
