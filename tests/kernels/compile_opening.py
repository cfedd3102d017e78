"""Compile the kernel of openings for one target, without a GPU: `python compile_opening.py BACKEND ARCH WARP`."""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from guard.kernels.opening_triton import opening_kernel

CONSTANTS = {"CHOICES": 1024, "BLOCK": 4096}
TYPES = {
    "logits": "*fp32", "logits_stride": "i64", "tokens_stride": "i64", "width": "i32", "end_count": "i32",
    "pointers": "*i64", "end_ids": "*i64",
}


def main() -> None:
    """Compile and print the size of the code."""
    backend, arch, warp = sys.argv[1:]
    target = GPUTarget(backend, int(arch) if arch.isdigit() else arch, int(warp))
    names = opening_kernel.arg_names
    signature = {name: "constexpr" if name in CONSTANTS else TYPES.get(name, "*i32") for name in names}
    compiled = triton.compile(ASTSource(opening_kernel, signature, constexprs=CONSTANTS), target=target)
    print("opening_kernel", len(compiled.asm["cubin" if backend == "cuda" else "hsaco"]))


if __name__ == "__main__":
    main()
