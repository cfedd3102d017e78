"""Triton kernels that mask the tokens that would complete a forbidden string, and the launcher of all of them.

The state of every row comes from kernels/mask_walk_triton.py. Layouts of the tables: kernels/mask.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from guard.kernels.mask_walk_triton import (
    POINTERS,
    REQUEST_WIDTH,
    advance_kernel,
    allowed,
    array_of,
    read_token,
    rows_kernel,
)


@triton.jit
def _ban(logits, heads, token, broken, width, mask):  # type: ignore[no-untyped-def]
    """Write -inf at `token` where allowed by `mask`; number of logits that were not -inf before."""
    mask = mask & (token < width)
    if broken:
        # tokens that continue the unfinished character are judged one by one in heads_kernel
        mask = mask & (tl.load(heads + token, mask=mask, other=0) == 0)
    before = tl.load(logits + token, mask=mask, other=-float("inf"))
    tl.store(logits + token, float("-inf"), mask=mask)
    return (mask & (before != float("-inf"))).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def mask_kernel(  # type: ignore[no-untyped-def]
    logits, logits_stride, width, heads, order, table, requests, row_states, row_mapping, counts,
    PARTS: tl.constexpr, ENTRIES: tl.constexpr, TOKENS: tl.constexpr,
):
    """Mask the row's ranges and the tokens that hold a whole pattern. Grid (rows, PARTS)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    slot = tl.load(row_states + row * 4 + 3)
    if slot > 0:
        index = tl.load(row_mapping + row).to(tl.int64)
        request = requests + index * REQUEST_WIDTH
        base = logits + row * logits_stride
        broken = tl.load(row_states + row * 4 + 1) != 0
        node = tl.load(row_states + row * 4 + 2)
        fail, offset = array_of(table, slot, 2), array_of(table, slot, 5)
        low_of, high_of, pattern_of = array_of(table, slot, 6), array_of(table, slot, 7), array_of(table, slot, 8)
        banned = tl.zeros([TOKENS], dtype=tl.int32)
        tokens = tl.arange(0, TOKENS)
        shared = tl.load(table + slot.to(tl.int64) * POINTERS + 11)
        shared_token, shared_pattern = array_of(table, slot, 9), array_of(table, slot, 10)
        at = part * TOKENS
        while at < shared:
            inside = at + tokens < shared
            pattern = tl.load(shared_pattern + at + tokens, mask=inside, other=-1)
            inside = inside & (allowed(request + tokens * 0, pattern, inside) == 0)
            token = tl.load(shared_token + at + tokens, mask=inside, other=0)
            banned += _ban(base, heads, token, broken, width, inside)
            at += PARTS * TOKENS
        entries = tl.arange(0, ENTRIES)
        while node != 0:
            entry = tl.load(offset + node.to(tl.int64)) + part * ENTRIES
            end = tl.load(offset + node.to(tl.int64) + 1)
            while entry < end:
                there = entry + entries < end
                pattern = tl.load(pattern_of + entry + entries, mask=there, other=-1)
                there = there & (allowed(request + entries * 0, pattern, there) == 0)
                low = tl.load(low_of + entry + entries, mask=there, other=0)
                length = tl.load(high_of + entry + entries, mask=there, other=0) - low
                at2 = 0
                while at2 < tl.max(length, axis=0):
                    inside = (at2 + tokens)[None, :] < length[:, None]
                    token = tl.load(order + low[:, None] + (at2 + tokens)[None, :], mask=inside, other=0)
                    banned += tl.sum(_ban(base, heads, token, broken, width, inside), axis=0)
                    at2 += TOKENS
                entry += PARTS * ENTRIES
            node = tl.load(fail + node.to(tl.int64))
        tl.atomic_add(counts + slot.to(tl.int64), tl.sum(banned, axis=0).to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def heads_kernel(  # type: ignore[no-untyped-def]
    logits, logits_stride, width, heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table,
    requests, row_states, row_mapping, counts, head_ids, number, BLOCK: tl.constexpr,
):
    """Mask tokens that continue an unfinished character and so complete a pattern. Grid (rows, blocks)."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(row_states + row * 4 + 3)
    pending = tl.load(row_states + row * 4 + 1)
    if (slot > 0) & (pending != 0):
        index = tl.load(row_mapping + row).to(tl.int64)
        lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        active = lane < number
        token = tl.load(head_ids + lane, mask=active, other=0).to(tl.int64)
        zero = lane * 0
        node, _, done = read_token(
            heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table,
            requests + index * REQUEST_WIDTH + zero, slot + zero, tl.load(row_states + row * 4) + zero,
            pending + zero, token, active, True,
        )
        banned = _ban(logits + row * logits_stride, heads, token, False, width, done)
        tl.atomic_add(counts + slot.to(tl.int64), tl.sum(banned, axis=0).to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def rescue_kernel(logits, logits_stride, width, row_states, end_ids, end_count, rescued, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Leave only the end tokens in rows that may only end (slot -1), are all -inf or hold a NaN. Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(row_states + row * 4 + 3)
    if slot != 0:
        base = logits + row * logits_stride
        lane = tl.arange(0, BLOCK)
        usable = 0
        broken = 0
        at = 0
        while at < width:
            values = tl.load(base + at + lane, mask=at + lane < width, other=-float("inf"))
            usable = tl.maximum(usable, tl.max((values > -float("inf")).to(tl.int32), axis=0))
            broken = tl.maximum(broken, tl.max((values != values).to(tl.int32), axis=0))
            at += BLOCK
        if (slot < 0) | (usable == 0) | (broken != 0):
            at = 0
            while at < width:
                kept = lane < 0
                for end in range(end_count):
                    kept = kept | (at + lane == tl.load(end_ids + end))
                tl.store(base + at + lane, tl.where(kept, 0.0, -float("inf")), mask=at + lane < width)
                at += BLOCK
            tl.atomic_add(rescued + (slot < 0).to(tl.int32), 1)


def launch(
    logits: torch.Tensor, vocabulary: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor],
    batch: dict[str, Any], size: int,
) -> None:
    """Run all kernels on `logits` [rows, width] float32; names of the tensors as in `DeviceBank`."""
    rows, width = logits.shape
    names = ("heads", "tails", "flags", "codes", "offsets", "fold_value", "fold_offsets", "fold_codes")
    words = tuple(vocabulary[name] for name in names)
    table, requests, states, counts = (buffers[name] for name in ("pointers", "requests", "states", "counts"))
    row_states = torch.empty(rows, 4, dtype=torch.int32, device=logits.device)
    mapping, history = batch["row_mapping"], batch["all_tokens"]
    requests_in_batch = batch["idx_mapping"].shape[0]
    advance_kernel[(triton.cdiv(requests_in_batch, 8),)](
        *words, table, requests, states, batch["idx_mapping"], history, history.stride(0), batch["prompt_len"],
        batch["total_len"], requests_in_batch, size, BLOCK=8, num_warps=1,
    )
    rows_kernel[(triton.cdiv(rows, 8),)](
        *words, table, requests, states, row_states, mapping, batch["local_pos"], batch["input_ids"], rows, size,
        BLOCK=8, num_warps=1,
    )
    mask_kernel[(rows, 4)](
        logits, logits.stride(0), width, vocabulary["heads"], vocabulary["order"], table, requests, row_states,
        mapping, counts, PARTS=4, ENTRIES=16, TOKENS=64, num_warps=4,
    )
    number = vocabulary["head_ids"].shape[0]
    if number:
        heads_kernel[(rows, triton.cdiv(number, 128))](
            logits, logits.stride(0), width, *words, table, requests, row_states, mapping, counts,
            vocabulary["head_ids"], number, BLOCK=128, num_warps=4,
        )
    rescue_kernel[(rows,)](
        logits, logits.stride(0), width, row_states, buffers["end_ids"], buffers["end_ids"].shape[0],
        buffers["rescued"], BLOCK=4096, num_warps=8,
    )
