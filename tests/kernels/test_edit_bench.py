"""The GPU check of the edits tells a right kernel from a wrong one; here on a CPU, with the torch implementation."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench/gpu/edit.py"""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from bench.gpu import edit  # noqa: PLC0415 - lies outside the installed packages

    return edit


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("shape", [(1, 96, 16, 1), (33, 63, 5, 2), (48, 64, 32, 3), (20, 64, 0, 2)])
def test_the_check_passes_a_right_implementation(
    bench: ModuleType, shape: tuple[int, int, int, int], mixed: bool, keep_norm: bool,
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for bank_dtype in (torch.float32, torch.bfloat16):
            error = bench.check_edit(
                *shape, dtype=dtype, bank_dtype=bank_dtype, mixed=mixed, keep_norm=keep_norm, device="cpu"
            )
            # a single token of a mixed case has no lane
            assert error <= 1.0
            assert (error > 0.0) == (shape[0] > 1 or not mixed)


def test_the_check_refuses_a_wrong_implementation(bench: ModuleType) -> None:
    case = bench.random_case(20, 64, 16, 2, mixed=True, device="cpu")
    case.token_lane[0, ::5] = 0

    def off_by_a_little() -> None:
        case.run()
        case.hidden[1] *= 1.02

    def touches_others() -> None:
        case.run()
        case.hidden[0, 5] += 1.0

    def forgets_the_norm() -> None:
        kept = case.bank.parts.clone()
        case.bank.parts.bitwise_and_(7)
        case.run()
        case.bank.parts.copy_(kept)

    for wrong, complaint in ((off_by_a_little, "error"), (touches_others, "untouched"), (lambda: None, "counts")):
        with pytest.raises(ValueError, match=complaint):
            bench.compare(case, 16, wrong, "case")
    case.bank.parts[0, 1] |= 8
    with pytest.raises(ValueError, match="error"):
        bench.compare(case, 16, forgets_the_norm, "case")
