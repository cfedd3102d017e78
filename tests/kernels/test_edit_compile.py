"""The edit kernel compiles for the GPUs that are supported, on a machine without one, and keeps to its registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# backend, architecture, warp, binary, shared memory of one program in bytes
TARGETS = [
    ("cuda", "90", "32", "cubin", 232448), ("cuda", "80", "32", "cubin", 166912),
    ("hip", "gfx942", "64", "hsaco", 65536),
]


@pytest.mark.parametrize(("backend", "arch", "warp", "binary", "shared"), TARGETS)
def test_edit_kernel_compiles_without_spills(backend: str, arch: str, warp: str, binary: str, shared: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(  # noqa: S603 - our own interpreter and script
        [sys.executable, str(Path(__file__).with_name("compile_edit.py")), backend, arch, warp], env=environment,
        capture_output=True, text=True, timeout=300, check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert len(report) == 4
    for shape, found in report.items():
        assert found["spills"] == 0, shape
        assert found["shared"] <= shared, shape
        assert binary in found["binary"], shape
