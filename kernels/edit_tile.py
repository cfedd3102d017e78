"""One edit of 16 tokens at once, a part of the Triton kernel in `guard.kernels.edit_triton`.

Matrix units multiply float32 numbers as exact sums of three bfloat16 (Henry, Tang, Heinecke, arXiv 1904.06376): the
products that are left out are below 2^-24 of the largest.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _split(value, PIECE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Three tensors of bfloat16 numbers, stored as PIECE, whose sum is the float32 `value`."""
    high = value.to(tl.bfloat16)
    rest = value - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high.to(PIECE), middle.to(PIECE), (rest - middle.to(tl.float32)).to(tl.bfloat16).to(PIECE)


@triton.jit  # type: ignore[untyped-decorator]
def _dot(left, right, accumulator, PIECE: tl.constexpr):  # type: ignore[no-untyped-def]
    """accumulator + left @ right in float32; `right` is float32, or bfloat16 and so a piece of its own."""
    high, middle, low = _split(left, PIECE)
    if right.dtype == tl.bfloat16:
        whole = right.to(PIECE)
        accumulator = tl.dot(low, whole, accumulator)
        accumulator = tl.dot(middle, whole, accumulator)
        return tl.dot(high, whole, accumulator)
    else:
        right_high, right_middle, right_low = _split(right, PIECE)
        accumulator = tl.dot(low, right_high, accumulator)
        accumulator = tl.dot(middle, right_middle, accumulator)
        accumulator = tl.dot(high, right_low, accumulator)
        accumulator = tl.dot(middle, right_high, accumulator)
        accumulator = tl.dot(high, right_middle, accumulator)
        return tl.dot(high, right_high, accumulator)


@triton.jit
def norm_factor(before_square, after_square, changed):  # type: ignore[no-untyped-def]
    """|x| / |x'| of squared norms; 1 where `changed` is 0 or nothing is rescaled, see `guard.kernels.edit_formula`."""
    # LEAST_SHARE, and the largest float32
    scaled = (after_square > 9.094947017729282e-13 * before_square) & (after_square <= 3.4028234663852886e38)
    scaled = scaled & (before_square > 0.0) & (changed > 0)
    return tl.where(scaled, tl.sqrt(before_square / tl.where(scaled, after_square, 1.0)), 1.0)


@triton.jit  # type: ignore[untyped-decorator]
def _tile_columns(  # type: ignore[no-untyped-def]
    hidden, residual, scale, shift, write, token, columns, entry, row, used, amount, part, hidden_stride,
    residual_stride, WIDTH: tl.constexpr, RANK: tl.constexpr, TILE: tl.constexpr, SLICES: tl.constexpr,
    CHUNK: tl.constexpr, PIECE: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):
    """Some columns of a tile: `hidden`, the activation, and what the edit adds to it at strength 1."""
    present = columns < WIDTH
    place = (entry * RANK + row[:, None]) * WIDTH + columns[None, :]
    matrix = tl.load(write + place, mask=used[:, None] & present[None, :], other=0.0)
    delta = _dot(amount, matrix, tl.zeros((TILE, SLICES * CHUNK), dtype=tl.float32), PIECE)
    pointer = hidden + token[:, None] * hidden_stride + columns[None, :]
    before = tl.load(pointer, mask=present[None, :], other=0.0).to(tl.float32)
    x = before
    if HAS_RESIDUAL:
        pointers = residual + token[:, None] * residual_stride + columns[None, :]
        x += tl.load(pointers, mask=present[None, :], other=0.0).to(tl.float32)
    affine = columns < tl.where((part & 2) != 0, WIDTH, 0)
    delta += tl.load(scale + entry * WIDTH + columns, mask=affine, other=0.0).to(tl.float32)[None, :] * x
    delta += tl.load(shift + entry * WIDTH + columns, mask=affine, other=0.0).to(tl.float32)[None, :]
    return before, x, delta


@triton.jit  # type: ignore[untyped-decorator]
def edit_tile(  # type: ignore[no-untyped-def]
    hidden, residual, scale, shift, read, write, bias, gain, offset, threshold, first, entry, strength, rank, part,
    hidden_stride, residual_stride, WIDTH: tl.constexpr, RANK: tl.constexpr, TILE: tl.constexpr,
    SLICES: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):
    """Edit the 16 tokens from `first` on with bank entry `entry` (site * slots + slot)."""
    token = (first + tl.arange(0, TILE)).to(tl.int64)
    row = tl.arange(0, RANK)
    used = row < rank
    # every warp has a slice of the width of its own
    total = tl.zeros((SLICES, TILE, RANK), dtype=tl.float32)
    if rank > 0:
        for start in range(0, WIDTH, SLICES * CHUNK):
            column = start + tl.arange(0, SLICES)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
            inside = column < WIDTH
            x_place = token[None, :, None] * hidden_stride + column[:, None, :]
            x = tl.load(hidden + x_place, mask=inside[:, None, :], other=0.0).to(tl.float32)
            if HAS_RESIDUAL:
                residual_place = token[None, :, None] * residual_stride + column[:, None, :]
                x += tl.load(residual + residual_place, mask=inside[:, None, :], other=0.0).to(tl.float32)
            read_place = (entry * RANK + row[None, None, :]) * WIDTH + column[:, :, None]
            matrix = tl.load(read + read_place, mask=inside[:, :, None] & used[None, None, :], other=0.0)
            total = _dot(x, matrix, total, PIECE)
    place = entry * RANK + row
    z = tl.sum(total, axis=0) + tl.load(bias + place)[None, :]
    fires = (z > tl.load(threshold + place)[None, :]) & used[None, :]
    gate = fires
    if (part & 4) != 0:
        gate = row[None, :] < (rank * tl.max(fires.to(tl.int32), axis=1))[:, None]
    amount = tl.load(gain + place)[None, :] * tl.where(fires, z, 0.0) + tl.load(offset + place)[None, :]
    amount = tl.where(gate, amount, 0.0)
    # the norm is known when the whole row is, so a row that keeps it is made twice
    before_square = tl.zeros((TILE,), dtype=tl.float32)
    after_square = tl.zeros((TILE,), dtype=tl.float32)
    changed = tl.zeros((TILE,), dtype=tl.int32)
    for start in range(0, tl.where((part & 8) != 0, WIDTH, 0), SLICES * CHUNK):
        columns = start + tl.arange(0, SLICES * CHUNK)
        before, x, delta = _tile_columns(
            hidden, residual, scale, shift, write, token, columns, entry, row, used, amount, part, hidden_stride,
            residual_stride, WIDTH, RANK, TILE, SLICES, CHUNK, PIECE, HAS_RESIDUAL,
        )
        after = x + strength * delta
        before_square += tl.sum(x * x, axis=1)
        after_square += tl.sum(after * after, axis=1)
        changed += tl.sum((after != x).to(tl.int32), axis=1)
    factor = norm_factor(before_square, after_square, changed)
    for start in range(0, WIDTH, SLICES * CHUNK):
        columns = start + tl.arange(0, SLICES * CHUNK)
        before, x, delta = _tile_columns(
            hidden, residual, scale, shift, write, token, columns, entry, row, used, amount, part, hidden_stride,
            residual_stride, WIDTH, RANK, TILE, SLICES, CHUNK, PIECE, HAS_RESIDUAL,
        )
        # the change, not x' - residual: a factor of 1 and a dimension that nothing moves keep their bits
        after = before + (factor[:, None] * (strength * delta) + (factor[:, None] - 1.0) * x)
        pointer = hidden + token[:, None] * hidden_stride + columns[None, :]
        tl.store(pointer, after.to(hidden.dtype.element_ty), mask=(columns < WIDTH)[None, :])
