"""Edits that keep the norm: what is kept, what is left alone, and that every implementation says the same."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from guard.kernels import edit_cpu
from guard.kernels.edit import AFFINE, KEEP_NORM, RESIDENT, Backend, EditBank, edit
from guard.kernels.edit_formula import ALWAYS, EditRow, edited, norm_factor


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


cases = _module("edit_cases")
WIDTH = 63
BACKENDS: list[Backend] = ["torch", "native"] if edit_cpu.library() else ["torch"]


def _projection(basis: Tensor, *, keep_norm: bool = True) -> EditRow:
    rank = len(basis)
    return EditRow(
        read=basis, write=basis, bias=torch.zeros(rank), gain=torch.full((rank,), -1.0), offset=torch.zeros(rank),
        threshold=torch.full((rank,), ALWAYS), keep_norm=keep_norm,
    )


def _applied(hidden: Tensor, rows: list[EditRow], backend: Backend, strength: float = 1.0) -> Tensor:
    """`hidden` [T, d] with `rows` in the lanes of every token, beside one token that has none."""
    bank = EditBank.empty(1, len(rows) + 1, hidden.shape[1], 4)
    lanes = torch.zeros(4, len(hidden) + 1, dtype=torch.int32)
    for slot, row in enumerate(rows, start=1):
        bank.set(0, slot, row)
        lanes[slot - 1, : len(hidden)] = slot
    step = torch.cat([hidden, hidden[:1]])
    strengths = torch.full((4, len(step)), strength)
    edit(step, None, torch.zeros(1, dtype=torch.int32), lanes, strengths, bank, backend=backend)
    assert torch.equal(step[-1], hidden[0])
    return step[:-1]


@pytest.fixture
def basis() -> Tensor:
    torch.manual_seed(3)
    columns: Tensor = torch.linalg.qr(torch.randn(WIDTH, 3)).Q
    return columns.T.contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_a_projected_state_keeps_its_norm_and_has_the_direction_of_the_plain_projection(
    backend: Backend, tokens: int, basis: Tensor
) -> None:
    x = torch.randn(tokens, WIDTH) + 3.0 * basis.sum(dim=0)
    kept, plain = (_applied(x, [_projection(basis, keep_norm=keep)], backend) for keep in (True, False))
    torch.testing.assert_close(kept.norm(dim=1), x.norm(dim=1))
    assert bool((plain.norm(dim=1) < 0.95 * x.norm(dim=1)).all())
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(kept, plain), torch.ones(tokens))
    assert float((kept @ basis.T).abs().max()) < 1e-5
    torch.testing.assert_close(kept, edited(x, _projection(basis)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_norm_is_that_of_each_lanes_input_and_lanes_compose(backend: Backend, basis: Tensor) -> None:
    x = torch.randn(6, WIDTH)
    shift, projection = EditRow(shift=torch.full((WIDTH,), 2.0)), _projection(basis)
    torch.testing.assert_close(
        _applied(x, [shift, projection], backend), edited(edited(x, shift), projection), rtol=1e-5, atol=1e-5
    )
    first = _applied(x, [projection, shift], backend)
    torch.testing.assert_close((first - 2.0).norm(dim=1), x.norm(dim=1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1.0, 1e18, 1e25])
def test_states_of_any_size_stay_finite(backend: Backend, scale: float, basis: Tensor) -> None:
    x = torch.randn(5, WIDTH) * scale
    kept = _applied(x, [_projection(basis)], backend)
    assert bool(kept.isfinite().all())
    if scale in (1e-25, 1e25):
        # their squares leave float32: the projection is the plain one
        assert torch.equal(kept, _applied(x, [_projection(basis, keep_norm=False)], backend))
    else:
        torch.testing.assert_close(kept.norm(dim=1), x.norm(dim=1), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_a_norm_is_zero_or_only_rounding_is_left_nothing_is_rescaled(backend: Backend, basis: Tensor) -> None:
    inside = torch.stack([basis[0] * 5.0, basis[1] - basis[2], torch.zeros(WIDTH)])
    kept = _applied(inside, [_projection(basis)], backend)
    assert float(kept.norm(dim=1).max()) < 1e-5
    # exactly zero
    gone = _applied(torch.ones(2, WIDTH), [EditRow(scale=torch.full((WIDTH,), -1.0), keep_norm=True)], backend)
    assert torch.equal(gone, torch.zeros(2, WIDTH))
    # a state of zero has no norm to keep
    from_zero = _applied(torch.zeros(2, WIDTH), [EditRow(shift=torch.ones(WIDTH), keep_norm=True)], backend)
    assert torch.equal(from_zero, torch.ones(2, WIDTH))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_edit_that_moves_nothing_changes_no_bit(backend: Backend) -> None:
    for step in cases.still_steps():
        hidden = step.hidden.clone()
        edit(hidden, step.residual, step.site, step.token_lane, step.token_strength, step.bank, backend=backend)
        assert torch.equal(hidden, step.hidden)
        assert int(step.bank.counts[1, list(cases.KEEPING)].sum()) > 16


def test_the_formula_changes_no_bit_at_strength_zero(basis: Tensor) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(7, WIDTH).to(dtype)
        assert torch.equal(edited(x, _projection(basis), 0.0), x)


def test_gradients_are_those_of_the_rescaled_projection_and_finite_where_nothing_is_rescaled(basis: Tensor) -> None:
    x = torch.randn(2, WIDTH, dtype=torch.float64, requires_grad=True)

    weights = torch.randn(2, WIDTH, dtype=torch.float64)
    flat = x - (x @ basis.double().T) @ basis.double()
    direct = flat * (x.norm(dim=1) / flat.norm(dim=1))[:, None]
    (wanted,) = torch.autograd.grad((direct * weights).sum(), x)
    (found,) = torch.autograd.grad((edited(x, _projection(basis)) * weights).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    still = torch.cat([torch.zeros(1, WIDTH), basis[:1] * 4.0]).requires_grad_()
    (still_gradient,) = torch.autograd.grad(edited(still, _projection(basis)).square().sum(), still)
    assert bool(still_gradient.isfinite().all())


def test_the_bank_remembers_who_keeps_the_norm() -> None:
    bank = EditBank.empty(1, 3, 8, 1)
    assert norm_factor(torch.ones(1, 8), torch.full((1, 8), 2.0)).tolist() == [[0.5]]
    bank.set(0, 1, EditRow(shift=torch.ones(8), keep_norm=True))
    assert int(bank.parts[0, 1]) == RESIDENT | AFFINE | KEEP_NORM
    # the next owner of the slot does not inherit it
    bank.set(0, 1, EditRow(shift=torch.ones(8)))
    assert bank.parts[0].tolist() == [0, RESIDENT | AFFINE, 0]
