"""Embedding corruption: the torch reference against float64 formulas, the Triton kernel against the reference."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from guard.kernels.corrupt import (
    MAX_WIDTH,
    CorruptionTable,
    corrupt,
    erase_signs,
    normals,
    philox,
)
from tests.kernels import interpreted

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# one rounding of the result, and float32 sums of up to 16k squares
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
SLOTS = 9


def _table() -> CorruptionTable:
    table = CorruptionTable.empty(SLOTS)
    table.set(1, kind="gauss", rho=5.0, seed=2**40 + 7)
    table.set(2, kind="gauss", dims=3, rho=2.0, seed=1)
    table.set(3, kind="zero_top", dims=5)
    table.set(4, kind="flip_sign", dims=9)
    table.set(5, kind="erase")
    table.set(6, kind="gauss", rho=1000.0, seed=2**63 - 1)
    table.set(7, kind="zero_top")
    return table


def _hidden(tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(tokens * 1000 + width)
    # rounded so that magnitudes tie
    return (torch.randn(tokens, width, generator=generator) * 4).round().div(4).to(dtype)


def _slots(tokens: int) -> tuple[Tensor, Tensor]:
    # -1 and 9 lie outside the table, 8 was never set
    slots = (torch.arange(tokens + 3) % 11 - 1).to(torch.int32)
    return slots, torch.arange(tokens + 3) * (2**31 + 5)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _expected(row: Tensor, slot: int, position: int) -> Tensor:
    """The formulas in float64, one row at a time."""
    table, e, width = _table(), row.double(), row.shape[0]
    n = min(int(table.dims[slot]) or width, width)
    kind, norm = int(table.kind[slot]), e.square().sum().sqrt()
    if kind == 1:
        noise = normals(table.seed[slot : slot + 1], torch.tensor([position]), width)[0].double()
        e[:n] += float(table.rho[slot]) * norm / math.sqrt(n) * noise[:n]
    elif kind == 2:
        order = sorted(range(width), key=lambda i: (-abs(float(e[i])), i))
        e[order[:n]] = 0.0
    elif kind == 3:
        e[:n] = -e[:n]
    else:
        e = norm / math.sqrt(width) * erase_signs(width).double()
    limit = torch.finfo(row.dtype).max
    return e.clamp(-limit, limit)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: str
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    words = philox((c0, c1, c2, c3), (torch.tensor([key[0]]), torch.tensor([key[1]])))
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def test_noise_is_standard_normal_and_independent_across_dims_positions_and_seeds() -> None:
    rows = 512
    noise = normals(torch.full((rows,), 11), torch.arange(rows), 256).double()
    count = noise.numel()
    assert abs(float(noise.mean())) < 4 / math.sqrt(count)
    assert abs(float(noise.var()) - 1) < 4 * math.sqrt(2 / count)
    assert abs(float((noise**3).mean())) < 4 * math.sqrt(15 / count)
    assert abs(float((noise**4).mean()) - 3) < 4 * math.sqrt(96 / count)
    limit = 5 / math.sqrt(count)
    other_seed = normals(torch.full((rows,), 12), torch.arange(rows), 256).double()
    assert abs(float((noise * other_seed).mean())) < limit
    assert abs(float((noise[1:] * noise[:-1]).mean())) < limit
    for shift in (1, 2, 3, 4):
        assert abs(float((noise[:, shift:] * noise[:, :-shift]).mean())) < limit
    assert len(set(noise.flatten().tolist())) > 0.99 * count


def test_high_words_of_seed_and_position_change_the_noise() -> None:
    seeds = torch.tensor([1, 1 + 2**32, 1, 1 + 2**62])
    positions = torch.tensor([5, 5, 5 + 2**32, 5])
    noise = normals(seeds, positions, 64)
    assert len({tuple(row) for row in noise.tolist()}) == 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 63, 256])
def test_reference_agrees_with_float64_and_leaves_other_rows_alone(dtype: torch.dtype, width: int) -> None:
    tokens, table = 63, _table()
    clean = _hidden(tokens, width, dtype)
    slots, positions = _slots(tokens)
    untouched = (slots[:tokens] <= 0) | (slots[:tokens] > 7)
    clean[untouched] = float("nan")
    hidden = clean.clone()
    corrupt(hidden, slots, positions, table)
    assert _same_bits(hidden[untouched], clean[untouched])
    for token in (~untouched).nonzero().flatten().tolist():
        expected = _expected(clean[token], int(slots[token]), int(positions[token]))
        scale = float(expected.abs().max()) + 1e-30
        assert float((hidden[token].double() - expected).abs().max()) <= TOLERANCE[dtype] * scale
    counts = torch.bincount(slots[:tokens][~untouched].long(), minlength=SLOTS)
    assert torch.equal(table.counts, counts)


def test_nothing_is_done_for_an_empty_batch_and_for_all_zero_slots() -> None:
    table, hidden = _table(), torch.full((5, 8), float("nan"))
    corrupt(hidden[:0], torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.int64), table)
    before = hidden.clone()
    corrupt(hidden, torch.zeros(5, dtype=torch.int32), torch.zeros(5, dtype=torch.int64), table)
    assert _same_bits(hidden, before)
    assert int(table.counts.sum()) == 0


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 40), max_size=6), dtype=st.sampled_from(DTYPES), width=st.sampled_from([7, 63, 128])
)
def test_chunks_give_bitwise_the_same_rows(cuts: list[int], dtype: torch.dtype, width: int) -> None:
    tokens = 40
    slots, positions = _slots(tokens)
    whole, pieces = _hidden(tokens, width, dtype), _hidden(tokens, width, dtype)
    table, other = _table(), _table()
    corrupt(whole, slots, positions, table)
    edges = [0, *sorted(cuts), tokens]
    for start, end in zip(edges, edges[1:], strict=False):
        corrupt(pieces[start:end], slots[start:], positions[start:], other)
    assert _same_bits(whole, pieces)
    assert torch.equal(table.counts, other.counts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_corrupted_row_is_finite_whatever_it_held(dtype: torch.dtype) -> None:
    hidden = _hidden(7, 16, dtype)
    hidden[:, 0] = float("nan")
    hidden[:, 1] = float("inf")
    hidden[:, 2] = torch.finfo(dtype).max
    corrupt(hidden, torch.arange(1, 8, dtype=torch.int32), torch.arange(7), _table())
    assert bool(hidden.isfinite().all())


def test_gauss_noise_norm_is_rho_times_the_row_norm_and_erase_keeps_the_norm() -> None:
    clean = torch.randn(400, 256, generator=torch.Generator().manual_seed(3))
    hidden, table = clean.clone(), CorruptionTable.empty(3)
    table.set(1, kind="gauss", rho=2.0, seed=9)
    table.set(2, kind="erase")
    slots = torch.tensor([1, 2] * 200, dtype=torch.int32)
    corrupt(hidden, slots, torch.arange(400), table)
    ratio = (hidden - clean)[::2].norm(dim=1) / clean[::2].norm(dim=1)
    assert float(ratio.mean()) == pytest.approx(2.0, rel=0.01)
    assert torch.allclose(hidden[1::2].norm(dim=1), clean[1::2].norm(dim=1), rtol=1e-5)
    direction = hidden[1::2] / hidden[1::2].norm(dim=1, keepdim=True)
    assert torch.allclose(direction, direction[:1].expand_as(direction), atol=1e-6)


def test_wrong_arguments_are_refused() -> None:
    table, slots, positions = _table(), torch.ones(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    for hidden, slot, position in (
        (torch.zeros(3, 4), slots, positions),
        (torch.zeros(2, 4, dtype=torch.float64), slots, positions),
        (torch.zeros(2, MAX_WIDTH + 1), slots, positions),
        (torch.zeros(4, 2).t(), slots, positions),
        (torch.zeros(2, 4), slots.long(), positions),
        (torch.zeros(2, 4), slots, positions.int()),
    ):
        with pytest.raises(ValueError, match="must be"):
            corrupt(hidden, slot, position, table)
    for slot_number, arguments in ((0, {"rho": 1.0}), (SLOTS, {"rho": 1.0}), (1, {"rho": math.nan}), (1, {"seed": -1})):
        with pytest.raises(ValueError, match=r"outside|must be"):
            table.set(slot_number, kind="gauss", **arguments)
    with pytest.raises(ValueError, match="unknown corruption kind"):
        table.set(1, kind="none")


def test_triton_kernel_agrees_with_the_reference(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    cases, options = [], []
    shapes = [(1, 1), (63, 63), (12, 300), (11, 2048)]
    for dtype in DTYPES:
        for tokens, width in shapes:
            table = _table()
            # columns behind the width belong to somebody else
            hidden = torch.full((tokens, width + 2), float("nan"), dtype=dtype)
            hidden[:, :width] = _hidden(tokens, width, dtype)
            hidden[0, 0] = float("nan")
            slots, positions = _slots(tokens)
            if tokens == 1:
                slots += 2
            names = {"hidden": hidden, "token_slot": slots, "position": positions, "kind": table.kind}
            names |= {"dims": table.dims, "rho": table.rho, "seed": table.seed, "counts": table.counts}
            cases.append(names)
            options.append({"width": width})
    results = interpreted.run("corrupt", cases, options, tmp_path)
    for case, option, result in zip(cases, options, results, strict=True):
        width, table = option["width"], _table()
        given, slots = case["hidden"], case["token_slot"][: case["hidden"].shape[0]]
        expected = given.clone()
        corrupt(expected[:, :width], case["token_slot"], case["position"], table)
        touched = (slots > 0) & (slots <= 7)
        assert _same_bits(result["hidden"][~touched], given[~touched])
        assert bool(result["hidden"][:, width:].isnan().all())
        got, want = result["hidden"][touched, :width].double(), expected[touched, :width].double()
        scale = want.abs().amax(dim=1, keepdim=True) + 1e-30
        # the kernel may round the other way: twice one rounding
        assert float(((got - want).abs() / scale).max()) <= 2 * TOLERANCE[given.dtype]
        exact = slots[touched]
        chosen = (exact == 3) | (exact == 4) | (exact == 7)
        assert torch.equal(got[chosen], want[chosen])
        assert torch.equal(result["counts"], table.counts)
