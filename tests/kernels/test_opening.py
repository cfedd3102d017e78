"""The kernel of openings in Triton's interpreter against its reference, and its compilation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from guard.kernels.opening import OpeningBank
from tests.kernels.test_mask import run

SCRIPT = Path(__file__).with_name("run_opening.py")
COMPILE = Path(__file__).with_name("compile_opening.py")
CASES = [
    "one_row", "sixty_three_rows", "no_rows", "drafts", "masked_before", "narrow_logits", "nothing_left",
    "recycled_slots",
]

pytest.importorskip("triton")


@pytest.mark.parametrize("target", [("cuda", "90", "32"), ("cuda", "80", "32"), ("hip", "gfx942", "64")])
def test_the_kernel_compiles_for(target: tuple[str, str, str]) -> None:
    assert "opening_kernel" in run(COMPILE, *target, interpret=False)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """What every case ended with; one process runs them all."""
    found: dict[str, str] = json.loads(run(SCRIPT, *CASES, interpret=True))
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_agrees_with_its_reference(outcomes: dict[str, str], case: str) -> None:
    assert outcomes[case] == "agrees", outcomes[case]


def test_wrong_shapes_are_refused() -> None:
    bank = OpeningBank(1, (0,), torch.device("cpu"))
    one = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="float32"):
        bank.apply(torch.zeros(1, 4, dtype=torch.float64), one, one, one, one[None], one)
    with pytest.raises(ValueError, match="number of rows"):
        bank.apply(torch.zeros(2, 4), one, one, one, one[None], one)
