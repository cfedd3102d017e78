"""Activation edits: torch, native code and the Triton kernel against the formula in float64."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from guard.kernels import edit_cpu
from guard.kernels.edit import AFFINE, ANY_GATE, RESIDENT, Backend, EditBank, edit
from guard.kernels.edit_formula import EditRow, edited


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


cases = _module("edit_cases")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BANK_DTYPES = [torch.float32, torch.bfloat16]
# half a unit in the last place: one rounding
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# what float32 sums over a row may lose, relative to the largest number of the row
ARITHMETIC = 1e-5


def _verify(step: Any, got: Tensor, counts: Tensor, *, rounding: float) -> None:
    """`got` [T, d] and the counts [K, S] are what the formula says; untouched rows are bitwise those of the step."""
    want, expected_counts, margin = cases.expected(step)
    touched = cases.touched(step)
    assert torch.equal(counts[1], expected_counts)
    assert int(counts[0].sum()) == 0
    bits = (got[~touched].contiguous().view(torch.uint8), step.hidden[~touched].contiguous().view(torch.uint8))
    assert torch.equal(*bits)
    # a gate as near as this may fall either way
    clear = touched & (margin > 1e-4)
    assert int(clear.sum()) >= 0.9 * int(touched.sum()) - 2
    scale = torch.maximum(step.hidden.double().abs(), want.abs())
    if step.residual is not None:
        scale = torch.maximum(scale, step.residual.double().abs())
    scale = scale.amax(dim=1, keepdim=True)[clear] if want.numel() else want
    error = (got.double() - want)[clear].abs()
    allowed = rounding * want[clear].abs() + ARITHMETIC * scale
    assert bool((error <= allowed).all()), float((error / allowed).max())


def _run(step: Any) -> None:
    """Every implementation that a CPU can take, each from the same state."""
    given_bits, lanes = step.hidden, (step.token_lane, step.token_strength)
    backends: list[Backend] = ["torch", "auto"]
    if edit_cpu.works(step.hidden, step.residual):
        backends.append("native")
    for backend in backends:
        step.bank.counts.zero_()
        # columns behind the width belong to somebody else
        wide = torch.full((given_bits.shape[0], given_bits.shape[1] + 2), float("nan"), dtype=given_bits.dtype)
        wide[:, :-2] = given_bits
        edit(wide[:, :-2], step.residual, step.site, *lanes, step.bank, backend=backend)
        assert bool(wide[:, -2:].isnan().all())
        _verify(step, wide[:, :-2], step.bank.counts, rounding=ROUNDING[wide.dtype])


@pytest.mark.parametrize(("tokens", "width"), [(0, 63), (1, 256), (63, 896), (257, 63), (257, 896)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_and_native_code_agree_with_the_formula(tokens: int, width: int, dtype: torch.dtype) -> None:
    for seed, (bank_dtype, residual) in enumerate(itertools.product(BANK_DTYPES, (False, True))):
        rank = (1, 16, 32, 31)[seed]
        _run(cases.random_step(tokens, width, rank, dtype, bank_dtype, residual=residual, seed=seed))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40), width=st.integers(1, 40), rank=st.integers(1, 32), dtype=st.sampled_from(DTYPES),
    bank_dtype=st.sampled_from(BANK_DTYPES), residual=st.booleans(), seed=st.integers(0, 2**32),
)
def test_torch_and_native_code_agree_with_the_formula_on_small_shapes(
    tokens: int, width: int, rank: int, dtype: torch.dtype, bank_dtype: torch.dtype, residual: bool, seed: int,
) -> None:
    _run(cases.random_step(tokens, width, rank, dtype, bank_dtype, residual=residual, seed=seed))


def test_long_prefill_is_cut_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.kernels.edit._ELEMENTS_PER_PASS", 7 * 63)
    _run(cases.random_step(130, 63, 16, torch.float32, torch.float32, residual=True, seed=5))


def test_native_code_builds_where_there_is_a_compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    assert edit_cpu.library() is not None
    step = torch.zeros(1, 8)
    assert edit_cpu.works(step, None)
    assert not edit_cpu.works(step.half(), None)
    assert not edit_cpu.works(step, step.bfloat16())
    lanes = torch.zeros(4, 1, dtype=torch.int32), torch.zeros(4, 1)
    with pytest.raises(RuntimeError, match="dtypes"):
        edit(step.half(), None, torch.zeros(1, dtype=torch.int32), *lanes, EditBank.empty(1, 2, 8, 1), backend="native")


def test_without_a_compiler_torch_does_the_edits(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    edit_cpu.library.cache_clear()
    try:
        _run(cases.random_step(33, 63, 16, torch.float32, torch.float32, residual=True, seed=3))
        assert edit_cpu.library() is None
        assert caplog.text.count("run in torch") == 1
        with pytest.raises(RuntimeError, match="not built"):
            edit_cpu.launch_edit(*(torch.zeros(0),) * 5, EditBank.empty(1, 2, 8, 1))
    finally:
        edit_cpu.library.cache_clear()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_token_is_counted_once_whatever_the_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for seed in range(4):
            _run(cases.random_step(700, 40, 8, torch.bfloat16, torch.bfloat16, residual=True, seed=seed))
    finally:
        torch.set_num_threads(before)


def test_the_bank_edits_as_the_formula_of_fitting_does() -> None:
    torch.manual_seed(0)
    row = cases.random_row(96, 5, affine=True, any_gate=True)
    bank = EditBank.empty(1, 2, 96, 5)
    bank.set(0, 1, row)
    hidden, strength = torch.randn(9, 96), torch.full((4, 9), 0.7)
    want = edited(hidden, row, 0.7)
    lanes = torch.tensor([[1] * 9, [0] * 9, [0] * 9, [0] * 9], dtype=torch.int32)
    edit(hidden, None, torch.zeros(1, dtype=torch.int32), lanes, strength, bank)
    assert torch.allclose(hidden, want, atol=1e-5)


def test_dimensions_that_nothing_moves_keep_their_bits() -> None:
    bank = EditBank.empty(1, 2, 8, 1)
    shift = torch.zeros(8)
    shift[3] = 1.0
    bank.set(0, 1, EditRow(shift=shift))
    hidden, residual = torch.full((1, 8), 1.2345e-5), torch.full((1, 8), 777.7)
    before = hidden.clone()
    lanes = torch.tensor([[1], [0], [0], [0]], dtype=torch.int32)
    edit(hidden, residual, torch.zeros(1, dtype=torch.int32), lanes, torch.ones(4, 1), bank)
    moved = hidden != before
    assert moved.nonzero().tolist() == [[0, 3]]
    assert abs(float(hidden[0, 3]) - 1.0) < 1e-3


@pytest.mark.parametrize("site", [-1, 2, 99])
def test_sites_outside_the_bank_touch_nothing(site: int) -> None:
    step = cases.random_step(33, 63, 16, torch.float32, torch.float32, residual=False, seed=1)
    hidden = step.hidden.clone()
    place = torch.tensor([site], dtype=torch.int32)
    edit(hidden, None, place, step.token_lane, step.token_strength, step.bank)
    assert torch.equal(hidden.view(torch.uint8), step.hidden.view(torch.uint8))
    assert int(step.bank.counts.sum()) == 0


def test_a_cleared_slot_touches_nothing_and_a_refilled_one_forgets() -> None:
    torch.manual_seed(2)
    bank = EditBank.empty(2, 3, 8, 20)
    assert (bank.num_sites, bank.num_slots, bank.width, bank.max_rank) == (2, 3, 8, 32)
    assert bank.size_bytes == sum(getattr(bank, name).nbytes for name in EditBank.__slots__) > 2 * 3 * 32 * 8 * 8
    lanes = torch.tensor([[2], [0], [0], [0]], dtype=torch.int32)
    site, strength = torch.zeros(1, dtype=torch.int32), torch.ones(4, 1)
    bank.set(0, 2, cases.random_row(8, 20, affine=True, any_gate=True))
    bank.set(1, 2, cases.random_row(8, 20, affine=True, any_gate=True))
    assert int(bank.parts[0, 2]) == RESIDENT | AFFINE | ANY_GATE
    hidden = torch.randn(1, 8)
    before = hidden.clone()
    edit(hidden, None, site, lanes, strength, bank)
    assert not torch.equal(hidden, before)
    bank.clear(2)
    assert not bank.parts.any()
    hidden = before.clone()
    edit(hidden, None, site, lanes, strength, bank)
    assert torch.equal(hidden, before)
    bank.set(0, 2, EditRow(shift=torch.ones(8)))
    edit(hidden, None, site, lanes, strength, bank)
    assert torch.equal(hidden, before + 1.0)
    assert int(bank.counts[0, 2]) == 2


def test_rows_that_do_not_fit_are_refused() -> None:
    bank = EditBank.empty(1, 2, 8, 16, torch.bfloat16)
    good = EditRow(shift=torch.ones(8))
    for site, slot in ((1, 1), (-1, 1), (0, 0), (0, 2)):
        with pytest.raises(ValueError, match="outside"):
            bank.set(site, slot, good)
    with pytest.raises(ValueError, match="does not fit"):
        bank.set(0, 1, EditRow(shift=torch.ones(9)))
    with pytest.raises(ValueError, match="does not fit"):
        bank.set(0, 1, cases.random_row(8, 17, affine=False, any_gate=False))
    with pytest.raises(ValueError, match="finite"):
        bank.set(0, 1, EditRow(shift=torch.full((8,), float("nan"))))
    with pytest.raises(ValueError, match="range"):
        bank.set(0, 1, EditRow(shift=torch.full((8,), 3.4e38)))
    assert not bank.parts.any()
    with pytest.raises(ValueError, match="outside"):
        bank.clear(0)
    for shape in ((0, 2, 8, 16), (1, 0, 8, 16), (1, 2, 0, 16), (1, 2, 8, 33), (1, 2, 16385, 16)):
        with pytest.raises(ValueError, match="needs"):
            EditBank.empty(*shape)
    with pytest.raises(ValueError, match="bfloat16 or float32"):
        EditBank.empty(1, 2, 8, 16, torch.float16)


def test_wrong_shapes_and_dtypes_are_refused() -> None:
    step = cases.random_step(4, 8, 1, torch.float32, torch.float32, residual=True, seed=0)
    changes: list[dict[str, Any]] = [
        {"hidden": torch.zeros(4, 9)}, {"hidden": torch.zeros(4, 8).double()}, {"hidden": torch.zeros(8)},
        {"hidden": torch.zeros(8, 4).T}, {"residual": torch.zeros(3, 8)}, {"residual": torch.zeros(8, 4).T},
        {"token_lane": torch.zeros(4, 3, dtype=torch.int32)}, {"token_lane": torch.zeros(4, 4)},
        {"token_lane": torch.zeros(3, 4, dtype=torch.int32)}, {"token_strength": torch.zeros(4, 4).double()},
        {"token_strength": torch.zeros(4, 4).T[:, :2]},
    ]
    for change in changes:
        bad = replace(step, **change)
        with pytest.raises(ValueError, match="must be"):
            edit(bad.hidden, bad.residual, bad.site, bad.token_lane, bad.token_strength, bad.bank)
    for site in (torch.zeros(1, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)):
        with pytest.raises(ValueError, match="site must be"):
            edit(step.hidden, step.residual, site, step.token_lane, step.token_strength, step.bank)


def test_triton_kernel_agrees_with_the_formula(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    answer = tmp_path / "edited.safetensors"
    done = subprocess.run(  # noqa: S603 - our own interpreter and script
        [sys.executable, str(Path(__file__).with_name("edit_cases.py")), str(answer)], capture_output=True, text=True,
        timeout=300, check=False, env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results, steps = load_file(answer), list(cases.kernel_steps())
    for number, step in enumerate(steps):
        got = results[f"{number}/hidden"]
        # the interpreter cuts off where the hardware rounds
        _verify(step, got, results[f"{number}/counts"], rounding=2 * ROUNDING[got.dtype])
    for number, step in enumerate(cases.still_steps(), start=len(steps)):
        assert int(results[f"{number}/counts"].sum()) > 16
        assert torch.equal(results[f"{number}/hidden"], step.hidden)
