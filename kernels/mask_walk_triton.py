"""Triton kernels that follow the token history through the automaton, for committed and for draft tokens.

Per automaton slot a row of `POINTERS` addresses (int64) names its arrays; per request slot a row of `request` says what
applies to it and a row of `state` holds (node, pending, position): the automaton after the committed tokens before
`position`. Advancing is idempotent, so the kernels may run any number of times a step. Layouts: kernels/mask.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

REQUEST_WIDTH = tl.constexpr(20)
STATE_WIDTH = tl.constexpr(3)
POINTERS = tl.constexpr(16)
EXEMPT_AT = tl.constexpr(4)
SEPARATOR = tl.constexpr(32)
HAS_REST = tl.constexpr(2)


@triton.jit
def array_of(table, slot, index):  # type: ignore[no-untyped-def]
    """Address of array `index` of automaton `slot`, for every lane."""
    address = tl.load(table + slot.to(tl.int64) * POINTERS + index)
    return address.to(tl.pointer_type(tl.int32), bitcast=True)


@triton.jit
def _step(table, slot, node, code, active):  # type: ignore[no-untyped-def]
    """Node after one character of the mask form, per lane; lanes that are not active keep their node."""
    first, label, fail = array_of(table, slot, 0), array_of(table, slot, 1), array_of(table, slot, 2)
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
def allowed(request, pattern, active):  # type: ignore[no-untyped-def]
    """Whether `pattern` is one of the request's exempt patterns, per lane."""
    result = pattern < 0
    number = tl.max(tl.load(request + 3, mask=active, other=0), axis=0)
    for index in range(number):
        result = result | (tl.load(request + EXEMPT_AT + index, mask=active, other=-1) == pattern)
    return result


@triton.jit
def _ended(table, request, slot, node, active):  # type: ignore[no-untyped-def]
    """Whether a pattern that is not exempt ends at `node`, per lane."""
    fail, output, pattern = array_of(table, slot, 2), array_of(table, slot, 3), array_of(table, slot, 4)
    end = tl.load(output + node.to(tl.int64), mask=active, other=-1)
    result = active & (active == 0)
    search = active & (end >= 0)
    while tl.max(search.to(tl.int32), axis=0) > 0:
        index = tl.load(pattern + end.to(tl.int64), mask=search, other=-1)
        hit = search & (allowed(request, index, search) == 0)
        result = result | hit
        up = tl.load(fail + end.to(tl.int64), mask=search, other=0)
        end = tl.load(output + up.to(tl.int64), mask=search, other=-1)
        search = search & (hit == 0) & (end >= 0)
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _read(table, request, slot, node, done, code, active, CHECK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One character: the next node, and whether a pattern has ended by now (only with CHECK)."""
    node = _step(table, slot, node, code, active)
    if CHECK:
        done = done | _ended(table, request, slot, node, active)
    return node, done


@triton.jit  # type: ignore[untyped-decorator]
def _character(  # type: ignore[no-untyped-def]
    fold_value, fold_offsets, fold_codes, table, request, slot, node, done, point, active, CHECK: tl.constexpr
):
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
def _continue(pending, byte):  # type: ignore[no-untyped-def]
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


@triton.jit  # type: ignore[untyped-decorator]
def read_token(  # type: ignore[no-untyped-def]
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
def _follow(  # type: ignore[no-untyped-def]
    heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table, request, slot,
    node, pending, token, size, in_prompt, active,
):
    """State after a committed or draft token. Ids without text change nothing; special tokens may be an edge."""
    active = active & (token >= 0) & (token < size)
    token = tl.where(active, token, 0).to(tl.int64)
    special = active & ((tl.load(flags + token, mask=active, other=0) & 1) != 0)
    skip = tl.load(request + 2, mask=active, other=0) != 0
    boundary = special & (in_prompt | (skip == 0))
    node, pending = tl.where(boundary, 1, node), tl.where(boundary, 0, pending)
    node, pending, _ = read_token(
        heads, tails, flags, codes, offsets, fold_value, fold_offsets, fold_codes, table, request, slot,
        node, pending, token, active & (special == 0), False,
    )
    return node, pending


@triton.jit  # type: ignore[untyped-decorator]
def advance_kernel(  # type: ignore[no-untyped-def]
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


@triton.jit  # type: ignore[untyped-decorator]
def rows_kernel(  # type: ignore[no-untyped-def]
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
