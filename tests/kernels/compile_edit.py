"""Compile the edit kernel for one target, without a GPU: `python compile_edit.py BACKEND ARCH WARP`.

Prints one JSON object: for every shape the bytes of registers that spill, read from the compiler's report, and the
bytes of shared memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from guard.kernels.edit_triton import edit_kernel, launch_options

# width, rank, activations, bank, residual
SHAPES = (
    (63, 16, "fp32", "bf16", False), (896, 16, "fp16", "bf16", True), (8192, 32, "bf16", "bf16", True),
    (8192, 32, "fp32", "fp32", True),
)
FLOATS = ("bias", "gain", "offset", "threshold", "token_strength")
BANK = ("scale", "shift", "read", "write")
INTEGERS = ("site", "token_lane", "rank_table", "parts_table")


def types(constants: dict[str, object], activation: str, bank: str) -> dict[str, str]:
    """Types of the kernel's arguments as the launcher passes them."""
    found = dict.fromkeys(constants, "constexpr")
    found |= dict.fromkeys(("hidden", "residual"), f"*{activation}") | dict.fromkeys(BANK, f"*{bank}")
    found |= dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(INTEGERS, "*i32") | {"counts": "*i64"}
    return {name: found.get(name, "i32") for name in edit_kernel.arg_names}


def cuda_spills(ptx: str, capability: int) -> int:
    """Bytes of spill stores and loads that ptxas reports for a kernel."""
    from triton.backends.nvidia.compiler import get_ptxas  # noqa: PLC0415 - there is none in a build for ROCm

    name = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={name[1] if name else ''}", str(source)]
        report = subprocess.run(  # noqa: S603 - Triton's own assembler
            [*command, "-o", str(source.with_suffix(".cubin"))], capture_output=True, text=True, check=True,
        ).stderr
    found = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    if not found:
        raise RuntimeError(f"ptxas reports no spills at all: {report}")
    return sum(map(int, found))


def hip_spills(assembly: str) -> int:
    """Spilled vector registers and bytes of scratch memory that the AMD compiler notes."""
    found = re.findall(r"\.(?:vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", assembly)
    if not found:
        raise RuntimeError("the AMD compiler notes no spills at all")
    return sum(map(int, found))


def main() -> None:
    """Compile every shape."""
    backend, arch, warp = sys.argv[1:]
    target = GPUTarget(backend, int(arch) if arch.isdigit() else arch, int(warp))
    report = {}
    for width, rank, activation, bank, residual in SHAPES:
        constants = launch_options(width, rank, torch.bfloat16 if bank == "bf16" else torch.float32)
        warps = constants.pop("num_warps")
        constants["HAS_RESIDUAL"] = residual
        signature = types(constants, activation, bank)
        aligned = [["tt.divisibility", 16]]
        attributes = {
            (index,): aligned for index, (name, kind) in enumerate(signature.items())
            if kind.startswith("*") or (width % 16 == 0 and name in ("hidden_stride", "residual_stride"))
        }
        source = ASTSource(edit_kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=target, options={"num_warps": warps})
        code = compiled.asm
        spills = cuda_spills(code["ptx"], int(arch)) if backend == "cuda" else hip_spills(code["amdgcn"])
        name = f"{width} {rank} {activation} {bank}"
        report[name] = {"spills": spills, "shared": compiled.metadata.shared, "binary": sorted(code)}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
