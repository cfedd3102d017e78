"""Every Triton kernel of the corruption path compiles for the GPUs that are supported, on a machine without one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

_SCRIPT = """
import sys
from triton.compiler import ASTSource
from triton.backends.compiler import GPUTarget
import triton
from guard.kernels.corrupt_triton import corrupt_kernel
from guard.kernels.route_triton import fill_kernel

targets = {
    "cuda:90": GPUTarget("cuda", 90, 32), "cuda:80": GPUTarget("cuda", 80, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
target = targets[sys.argv[1]]

def build(kernel, types, constants, warps):
    names = dict(pair.split(":") for pair in types.split()) | dict.fromkeys(constants, "constexpr")
    compiled = triton.compile(ASTSource(kernel, names, constants), target=target, options={"num_warps": warps})
    print(sorted(compiled.asm))

for dtype, shapes in (("bf16", ((63, 4), (4096, 8))), ("fp16", ((4096, 8),)), ("fp32", ((63, 4),))):
    for width, warps in shapes:
        block = triton.next_power_of_2(width)
        types = (
            f"hidden:*{dtype} token_slot:*i32 position:*i64 kind_table:*i32 dims_table:*i32 rho_table:*fp32 "
            "seed_table:*i64 counts:*i64 row_stride:i32 num_slots:i32 largest:fp32 erase_seed:i64"
        )
        constants = {"WIDTH": width, "BLOCK": block, "WIDTH_BITS": block.bit_length() - 1}
        build(corrupt_kernel, types, constants, warps)
for index in ("i32", "i64"):
    types = (
        f"token_slot:*i32 token_position:*i64 query_start_loc:*{index} positions:*i64 request_slots:*{index} "
        "slot_table:*i32 length_table:*i64 count_table:*i32 range_table:*i64 token_lane:*i32 token_strength:*fp32 "
        "lane_slot:*i32 lane_strength:*fp32 lane_phase:*i32 lane_count:*i32 lane_range:*i64 lane_length:*i64 "
        "batch:i32 num_padded:i32 num_positions:i32 num_requests:i32 lane_stride:i32 strength_stride:i32"
    )
    build(fill_kernel, types, {"MAX_RANGES": 64, "LANES": 4, "LANE_RANGES": 8, "STEPS": 9, "BLOCK": 256}, 4)
"""


@pytest.mark.parametrize(("target", "binary"), [("cuda:90", "cubin"), ("cuda:80", "cubin"), ("gfx942", "hsaco")])
def test_kernels_compile_to_a_binary_without_a_gpu(target: str, binary: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(  # noqa: S603 - our own interpreter and script
        [sys.executable, "-c", _SCRIPT, target], env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert all(binary in line for line in lines)
