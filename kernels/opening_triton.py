"""Triton kernel that keeps answers to the wordings of their opening, and its launcher. Layouts: kernels/opening.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from guard.kernels.opening import MAX_CHOICES


@triton.jit  # type: ignore[untyped-decorator]
def _next_node(offset, token_of, following, node, token, CHOICES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Node after `token`, -1 where no wording goes on with it."""
    low = tl.load(offset + node)
    high = tl.load(offset + node + 1)
    lane = low + tl.arange(0, CHOICES)
    inside = lane < high
    equal = inside & (tl.load(token_of + lane, mask=inside, other=-1) == token)
    after = tl.load(following + lane, mask=equal, other=-1)
    return tl.max(tl.where(equal, after, -1), axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def opening_kernel(  # type: ignore[no-untyped-def]
    logits, logits_stride, width, requests, pointers, end_ids, end_count, row_mapping, local_pos, input_ids,
    all_tokens, tokens_stride, total_len, CHOICES: tl.constexpr, BLOCK: tl.constexpr,
):
    """Follow one row's answer through its table and mask what no wording goes on with. Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.load(row_mapping + row).to(tl.int64)
    slot = tl.load(requests + index * 2).to(tl.int64)
    if slot > 0:
        table = pointers + slot * 4
        offset = tl.load(table).to(tl.pointer_type(tl.int32), bitcast=True)
        token_of = tl.load(table + 1).to(tl.pointer_type(tl.int32), bitcast=True)
        following = tl.load(table + 2).to(tl.pointer_type(tl.int32), bitcast=True)
        position = tl.load(requests + index * 2 + 1).to(tl.int32)
        total = tl.load(total_len + index).to(tl.int32)
        node = tl.zeros([], dtype=tl.int32)
        while (position < total) & (node >= 0):
            token = tl.load(all_tokens + index * tokens_stride + position).to(tl.int32)
            node = _next_node(offset, token_of, following, node, token, CHOICES)
            position += 1
        drafts = tl.load(local_pos + row).to(tl.int32)
        done = tl.zeros([], dtype=tl.int32)
        while (done < drafts) & (node >= 0):
            token = tl.load(input_ids + row - drafts + done + 1).to(tl.int32)
            node = _next_node(offset, token_of, following, node, token, CHOICES)
            done += 1
        if node >= 0:
            base = logits + row * logits_stride
            low = tl.load(offset + node)
            high = tl.load(offset + node + 1)
            lane = low + tl.arange(0, CHOICES)
            token = tl.load(token_of + lane, mask=lane < high, other=0)
            inside = (lane < high) & (token < width)
            kept = tl.load(base + token, mask=inside, other=-float("inf"))
            usable = tl.max((kept > -float("inf")).to(tl.int32), axis=0)
            tl.debug_barrier()
            at = 0
            block = tl.arange(0, BLOCK)
            while at < width:
                tl.store(base + at + block, tl.full([BLOCK], -float("inf"), tl.float32), mask=at + block < width)
                at += BLOCK
            tl.debug_barrier()
            tl.store(base + token, kept, mask=inside)
            if usable == 0:
                # nothing that could be said is left: the answer may only end
                for end in range(end_count):
                    tl.store(base + tl.load(end_ids + end), 0.0)


def launch(
    logits: torch.Tensor, requests: torch.Tensor, pointers: torch.Tensor, end_ids: torch.Tensor,
    row_mapping: torch.Tensor, local_pos: torch.Tensor, input_ids: torch.Tensor, all_tokens: torch.Tensor,
    total_len: torch.Tensor,
) -> None:
    """Mask `logits` [rows, width] float32 in place; the tensors are those of `OpeningBank.apply`."""
    rows, width = logits.shape
    opening_kernel[(rows,)](
        logits, logits.stride(0), width, requests, pointers, end_ids, end_ids.shape[0], row_mapping, local_pos,
        input_ids, all_tokens, all_tokens.stride(0), total_len, CHOICES=MAX_CHOICES, BLOCK=4096, num_warps=4,
    )
