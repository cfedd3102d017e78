"""The masking kernels in Triton's interpreter against one-by-one completion on the host, and their compilation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run_mask.py")
COMPILE = Path(__file__).with_name("compile_mask.py")
ROOT = Path(__file__).parents[2]
CASES = [
    "one_row", "sixty_three_rows", "no_rows", "drafts", "broken_characters", "nan_and_blocked", "incremental",
    "special_tokens", "narrow_logits", "recycled_slots", "refused_shapes",
]

pytest.importorskip("triton")


def run(script: Path, *arguments: str, interpret: bool) -> str:
    """Output of a script in a process of its own: the interpreter must be chosen before a kernel is defined."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, str(script), *arguments], env=environment, cwd=ROOT, capture_output=True, text=True,
        timeout=300, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("target", [("cuda", "90", "32"), ("cuda", "80", "32"), ("hip", "gfx942", "64")])
def test_every_kernel_compiles_for(target: tuple[str, str, str]) -> None:
    output = run(COMPILE, *target, interpret=False)
    for kernel in ("advance_kernel", "rows_kernel", "mask_kernel", "heads_kernel", "rescue_kernel"):
        assert kernel in output


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """What every case ended with; one process runs them all."""
    found: dict[str, str] = json.loads(run(SCRIPT, *CASES, interpret=True))
    return found


@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_the_host(outcomes: dict[str, str], case: str) -> None:
    assert outcomes[case] == "agrees", outcomes[case]
