"""Compile every kernel of the constraint for one target, without a GPU: `python compile_mask.py BACKEND ARCH WARP`."""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from guard.kernels import mask_triton

POINTERS_64 = {"table", "counts", "end_ids"}
SCALARS = {"tokens_stride": "i64", "logits_stride": "i64"}
NUMBERS = ("count", "size", "width", "number", "end_count")
CONSTANTS = {
    "advance_kernel": {"BLOCK": 8},
    "rows_kernel": {"BLOCK": 8},
    "mask_kernel": {"PARTS": 4, "ENTRIES": 16, "TOKENS": 64},
    "heads_kernel": {"BLOCK": 128},
    "rescue_kernel": {"BLOCK": 4096},
}


def signature(name: str) -> dict[str, str]:
    """Types of a kernel's arguments as the launcher passes them."""
    types = {}
    for argument in getattr(mask_triton, name).arg_names:
        if argument in CONSTANTS[name]:
            types[argument] = "constexpr"
        elif argument in SCALARS:
            types[argument] = SCALARS[argument]
        elif argument in NUMBERS:
            types[argument] = "i32"
        elif argument == "logits":
            types[argument] = "*fp32"
        else:
            types[argument] = "*i64" if argument in POINTERS_64 else "*i32"
    return types


def main() -> None:
    """Compile and print the size of the code of every kernel."""
    backend, arch, warp = sys.argv[1:]
    target = GPUTarget(backend, int(arch) if arch.isdigit() else arch, int(warp))
    for name, constants in CONSTANTS.items():
        source = ASTSource(getattr(mask_triton, name), signature(name), constexprs=constants)
        compiled = triton.compile(source, target=target)
        code = compiled.asm["cubin" if backend == "cuda" else "hsaco"]
        print(name, len(code))


if __name__ == "__main__":
    main()
