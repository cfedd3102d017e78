"""Triton kernels of the constraint: follow the token history, mask the tokens that would complete a forbidden string.

Per automaton slot a row of `POINTERS` addresses (int64) names its arrays; per request slot a row of `request` says what
applies to it and a row of `state` holds (node, pending, position): the automaton after the committed tokens before
`position`. Advancing is idempotent, so the kernels may run any number of times a step. Layouts: kernels/mask.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

REQUEST_WIDTH = tl.constexpr(20)
STATE_WIDTH = tl.constexpr(3)
POINTERS = tl.constexpr(16)
EXEMPT_AT = tl.constexpr(4)
SEPARATOR = tl.constexpr(32)
HAS_REST = tl.constexpr(2)


@triton.jit
def _array(table, slot, index):
    """Address of array `index` of automaton `slot`, for every lane."""
    address = tl.load(table + slot.to(tl.int64) * POINTERS + index)
    return address.to(tl.pointer_type(tl.int32), bitcast=True)


@triton.jit
def _step(table, slot, node, code, active):
    """Node after one character of the mask form, per lane; lanes that are not active keep their node."""
    first, label, fail = _array(table, slot, 0), _array(table, slot, 1), _array(table, slot, 2)
    here = tl.load(label + node.to(tl.int64), mask=active, other=0)
    stay = (code == SEPARATOR) & (here == SEPARATOR)
    result = tl.where(active & (stay == 0), 0, node)
    search = active & (stay == 0)
    current = node
    while tl.max(search.to(tl.int32), axis=0) > 0:
        low = tl.load(first + current.to(tl.int64), mask=search, other=0)
        end = tl.load(first + current.to(tl.int64) + 1, mask=search, other=0)
        high = end
        open_ = search & (low < high)
        while tl.max(open_.to(tl.int32), axis=0) > 0:
            middle = (low + high) // 2
            less = tl.load(label + middle.to(tl.int64), mask=open_, other=0) < code
            low, high = tl.where(open_ & less, middle + 1, low), tl.where(open_ & (less == 0), middle, high)
            open_ = search & (low < high)
        inside = search & (low < end)
        found = inside & (tl.load(label + low.to(tl.int64), mask=inside, other=-1) == code)
        result = tl.where(found, low, result)
        search = search & (found == 0) & (current != 0)
        current = tl.load(fail + current.to(tl.int64), mask=search, other=0)
    return result


@triton.jit
def _allowed(request, pattern, active):
    """Whether `pattern` is one of the request's exempt patterns, per lane."""
    result = pattern < 0
    number = tl.max(tl.load(request + 3, mask=active, other=0), axis=0)
    for index in range(number):
        result = result | (tl.load(request + EXEMPT_AT + index, mask=active, other=-1) == pattern)
    return result


@triton.jit
def _ended(table, request, slot, node, active):
    """Whether a pattern that is not exempt ends at `node`, per lane."""
    fail, output, pattern = _array(table, slot, 2), _array(table, slot, 3), _array(table, slot, 4)
    end = tl.load(output + node.to(tl.int64), mask=active, other=-1)
    result = active & (active == 0)
    search = active & (end >= 0)
    while tl.max(search.to(tl.int32), axis=0) > 0:
        index = tl.load(pattern + end.to(tl.int64), mask=search, other=-1)
        hit = search & (_allowed(request, index, search) == 0)
        result = result | hit
        up = tl.load(fail + end.to(tl.int64), mask=search, other=0)
        end = tl.load(output + up.to(tl.int64), mask=search, other=-1)
        search = search & (hit == 0) & (end >= 0)
    return result


@triton.jit
def _read(table, request, slot, node, done, code, active, CHECK: tl.constexpr):
    """One character: the next node, and whether a pattern has ended by now (only with CHECK)."""
    node = _step(table, slot, node, code, active)
    if CHECK:
        done = done | _ended(table, request, slot, node, active)
    return node, done


@triton.jit
def _character(fold_value, fold_offsets, fold_codes, table, request, slot, node, done, point, active, CHECK: tl.constexpr):
    """Read what code point `point` folds to."""
    value = tl.load(fold_value + point, mask=active, other=-1)
    several = active & (value < -1)
    begin = tl.load(fold_offsets - value - 2, mask=several, other=0)
    length = tl.load(fold_offsets - value - 1, mask=several, other=0) - begin
    length = tl.where(active & (value >= 0), 1, length)
    index = 0
    while tl.max(length, axis=0) > index:
        now = index < length
        code = tl.load(fold_codes + begin + index, mask=now & several, other=0)
        code = tl.where(several, code, value)
        node, done = _read(table, request, slot, node, done, code, now, CHECK)
        index += 1
    return node, done


@triton.jit
def _continue(pending, byte):
    """Add a continuation byte to a character: (pending bytes, code point or -1, whether the text is broken there)."""
    count = pending >> 24
    held = pending & 0xFFFFFF
    lead = tl.where(count == 3, held >> 16, tl.where(count == 2, held >> 8, held)) & 0xFF
    second = count == 1
    wrong = second & (((lead == 0xE0) & (byte < 0xA0)) | ((lead == 0xED) & (byte > 0x9F)))
    wrong = wrong | (second & (((lead == 0xF0) & (byte < 0x90)) | ((lead == 0xF4) & (byte > 0x8F))))
    wrong = wrong | (count == 0)
    need = tl.where(lead >= 0xF0, 4, tl.where(lead >= 0xE0, 3, 2))
    full = (wrong == 0) & (count + 1 == need)
    two = ((lead & 0x1F) << 6) | (byte & 0x3F)
    three = ((lead & 0x0F) << 12) | ((held & 0x3F) << 6) | (byte & 0x3F)
    four = ((lead & 0x07) << 18) | (((held >> 8) & 0x3F) << 12) | ((held & 0x3F) << 6) | (byte & 0x3F)
    point = tl.where(need == 2, two, tl.where(need == 3, three, four))
    grown = ((count + 1) << 24) | (held << 8) | byte
    return tl.where(wrong | full, 0, grown), tl.where(full, point, -1), wrong


@triton.jit
def _token(
    heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table, request, slot,
    node, pending, token, active, CHECK: tl.constexpr,
):
    """Read one ordinary token per lane: (node, pending, whether a pattern that is not exempt was completed)."""
    done = active & (active == 0)
    kind = tl.load(flags + token, mask=active, other=0)
    head = tl.load(heads + token, mask=active, other=0)
    rest = active & ((kind & HAS_REST) != 0)
    count = head >> 24
    index = 0
    while tl.max(tl.where(active, count, 0), axis=0) > index:
        now = active & (index < count)
        byte = ((head & 0xFFFFFF) >> (8 * tl.maximum(count - 1 - index, 0))) & 0xFF
        grown, point, wrong = _continue(pending, byte)
        pending = tl.where(now, grown, pending)
        node, done = _read(table, request, slot, node, done, node * 0 + SEPARATOR, now & wrong, CHECK)
        node, done = _character(
            fold_value, fold_offsets, fold_codes, table, request, slot, node, done, point, now & (point >= 0), CHECK
        )
        index += 1
    # bytes that follow cut an unfinished character off: broken text is a separator
    node, done = _read(table, request, slot, node, done, node * 0 + SEPARATOR, rest & (pending != 0), CHECK)
    begin = tl.load(offsets + token, mask=rest, other=0)
    length = tl.load(offsets + token + 1, mask=rest, other=0) - begin
    index = 0
    while tl.max(length, axis=0) > index:
        now = rest & (index < length)
        code = tl.load(codes + begin + index, mask=now, other=0)
        node, done = _read(table, request, slot, node, done, code, now, CHECK)
        index += 1
    pending = tl.where(rest, tl.load(tails + token, mask=rest, other=0), pending)
    return node, pending, done


@triton.jit
def _follow(
    heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table, request, slot,
    node, pending, token, size, in_prompt, active,
):
    """State after a committed or draft token. Ids without text change nothing; special tokens may be a word boundary."""
    active = active & (token >= 0) & (token < size)
    token = tl.where(active, token, 0).to(tl.int64)
    special = active & ((tl.load(flags + token, mask=active, other=0) & 1) != 0)
    skip = tl.load(request + 2, mask=active, other=0) != 0
    boundary = special & (in_prompt | (skip == 0))
    node, pending = tl.where(boundary, 1, node), tl.where(boundary, 0, pending)
    node, pending, _ = _token(
        heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table, request, slot,
        node, pending, token, active & (special == 0), False,
    )
    return node, pending


@triton.jit
def advance_kernel(
    heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table, requests, states,
    idx_mapping, all_tokens, tokens_stride, prompt_len, total_len, count, size, BLOCK: tl.constexpr,
):
    """Bring `states` of the batch's requests up to their last committed token."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = lane < count
    index = tl.load(idx_mapping + lane, mask=present, other=0).to(tl.int64)
    request = requests + index * REQUEST_WIDTH
    state = states + index * STATE_WIDTH
    slot = tl.load(request, mask=present, other=0)
    active = present & (slot > 0)
    slot = tl.where(active, slot, 0)
    node = tl.load(state, mask=active, other=0)
    pending = tl.load(state + 1, mask=active, other=0)
    position = tl.load(state + 2, mask=active, other=0)
    total = tl.load(total_len + index, mask=active, other=0).to(tl.int32)
    prompt = tl.load(prompt_len + index, mask=active, other=0).to(tl.int32)
    running = active & (position < total)
    while tl.max(running.to(tl.int32), axis=0) > 0:
        token = tl.load(all_tokens + index * tokens_stride + position.to(tl.int64), mask=running, other=-1)
        node, pending = _follow(
            heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table, request, slot,
            node, pending, token, size, position < prompt, running,
        )
        position = tl.where(running, position + 1, position)
        running = active & (position < total)
    tl.store(state, node, mask=active)
    tl.store(state + 1, pending, mask=active)
    tl.store(state + 2, position, mask=active)


@triton.jit
def rows_kernel(
    heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table, requests, states,
    row_states, row_mapping, local_pos, input_ids, count, size, BLOCK: tl.constexpr,
):
    """State of every row of logits: the request's, followed by the draft tokens before the row.

    Writes row_states [rows, 4]: node, pending, node after a separator if a character is unfinished, slot.
    """
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = lane < count
    row = lane.to(tl.int64)
    index = tl.load(row_mapping + row, mask=present, other=0).to(tl.int64)
    request = requests + index * REQUEST_WIDTH
    state = states + index * STATE_WIDTH
    slot = tl.load(request, mask=present, other=0)
    active = present & (slot > 0)
    safe = tl.where(active, slot, 0)
    node = tl.load(state, mask=active, other=0)
    pending = tl.load(state + 1, mask=active, other=0)
    drafts = tl.load(local_pos + row, mask=active, other=0).to(tl.int32)
    done = 0
    while tl.max(drafts, axis=0) > done:
        now = active & (done < drafts)
        token = tl.load(input_ids + row - drafts + done + 1, mask=now, other=-1)
        node, pending = _follow(
            heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table, request, safe,
            node, pending, token, size, drafts < 0, now,
        )
        done += 1
    whole = _step(table, safe, node, node * 0 + SEPARATOR, active & (pending != 0))
    out = row_states + row * 4
    tl.store(out, node, mask=present)
    tl.store(out + 1, pending, mask=present)
    tl.store(out + 2, whole, mask=present)
    tl.store(out + 3, slot, mask=present)


@triton.jit
def _ban(logits, heads, token, broken, width, mask):
    """Write -inf at `token` where allowed by `mask`; number of logits that were not -inf before."""
    mask = mask & (token < width)
    if broken:
        # tokens that continue the unfinished character are judged one by one in heads_kernel
        mask = mask & (tl.load(heads + token, mask=mask, other=0) == 0)
    before = tl.load(logits + token, mask=mask, other=-float("inf"))
    tl.store(logits + token, float("-inf"), mask=mask)
    return (mask & (before != float("-inf"))).to(tl.int32)


@triton.jit
def mask_kernel(
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
        fail, offset = _array(table, slot, 2), _array(table, slot, 5)
        low_of, high_of, pattern_of = _array(table, slot, 6), _array(table, slot, 7), _array(table, slot, 8)
        banned = tl.zeros([TOKENS], dtype=tl.int32)
        tokens = tl.arange(0, TOKENS)
        shared = tl.load(table + slot.to(tl.int64) * POINTERS + 11)
        shared_token, shared_pattern = _array(table, slot, 9), _array(table, slot, 10)
        at = part * TOKENS
        while at < shared:
            inside = at + tokens < shared
            pattern = tl.load(shared_pattern + at + tokens, mask=inside, other=-1)
            inside = inside & (_allowed(request + tokens * 0, pattern, inside) == 0)
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
                there = there & (_allowed(request + entries * 0, pattern, there) == 0)
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


@triton.jit
def heads_kernel(
    logits, logits_stride, width, heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table,
    requests, row_states, row_mapping, counts, head_ids, number, BLOCK: tl.constexpr,
):
    """Mask tokens that continue an unfinished character and so complete a pattern. Grid (rows, blocks of such tokens)."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(row_states + row * 4 + 3)
    pending = tl.load(row_states + row * 4 + 1)
    if (slot > 0) & (pending != 0):
        index = tl.load(row_mapping + row).to(tl.int64)
        lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        active = lane < number
        token = tl.load(head_ids + lane, mask=active, other=0).to(tl.int64)
        zero = lane * 0
        node, _, done = _token(
            heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table,
            requests + index * REQUEST_WIDTH + zero, slot + zero, tl.load(row_states + row * 4) + zero,
            pending + zero, token, active, True,
        )
        banned = _ban(logits + row * logits_stride, heads, token, False, width, done)
        tl.atomic_add(counts + slot.to(tl.int64), tl.sum(banned, axis=0).to(tl.int64))


@triton.jit
def rescue_kernel(logits, logits_stride, width, row_states, end_ids, end_count, rescued, BLOCK: tl.constexpr):
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
