"""Check the corruption, routing and edit kernels on a CUDA or ROCm machine and time them against copy bandwidth.

    PYTHONPATH=. python bench/gpu/kernels.py --out kernels.json

Needs torch and Triton, no vLLM. Before it is timed each kernel is compared with its torch reference (which the tests
compare with float64), the edits with float64 itself; a wrong kernel ends the run with exit code 1. Times are medians of
CUDA-event timings behind a flushed cache. `share` is (bytes that must move / time) / measured copy bandwidth of the
same number of bytes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.gpu.edit import edit_checks, edit_timings
from bench.gpu.timing import Timing, timing
from guard.kernels.corrupt import CorruptionTable, corrupt, corrupt_reference
from guard.kernels.route import RouteTable, fill

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KINDS = ("gauss", "zero_top", "flip_sign", "erase")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


def corruption_table(device: str) -> CorruptionTable:
    """Slots 1..4, one per kind."""
    table = CorruptionTable.empty(len(KINDS) + 1, device)
    for slot, kind in enumerate(KINDS, start=1):
        table.set(slot, kind=kind, dims=37 if kind == "zero_top" else 0, rho=3.0, seed=2**40 + slot)
    return table


def check_corrupt(tokens: int, width: int, dtype: torch.dtype) -> float:
    """Largest error relative to the row maximum; raises ValueError when untouched rows or counts differ."""
    hidden = torch.randn(tokens, width, device="cuda").to(dtype)
    slots = (torch.arange(tokens, device="cuda") % (len(KINDS) + 1)).to(torch.int32)
    hidden[slots == 0] = float("nan")
    positions = torch.arange(tokens, device="cuda") * (2**31 + 5)
    table, other = corruption_table("cuda"), corruption_table("cpu")
    expected = hidden.cpu()
    corrupt(hidden, slots, positions, table)
    corrupt_reference(expected, slots.cpu(), positions.cpu(), other)
    got, touched = hidden.cpu(), slots.cpu() > 0
    if not torch.equal(got[~touched].view(torch.uint8), expected[~touched].view(torch.uint8)):
        raise ValueError(f"untouched rows changed: {tokens} x {width} {dtype}")
    if not torch.equal(table.counts.cpu(), other.counts):
        raise ValueError(f"counts differ: {tokens} x {width} {dtype}")
    if not bool(touched.any()):
        return 0.0
    scale = expected[touched].double().abs().amax(dim=1, keepdim=True) + 1e-30
    error = float(((got[touched].double() - expected[touched].double()).abs() / scale).max())
    if not error <= TOLERANCE[dtype]:
        raise ValueError(f"error {error:.3g} above {TOLERANCE[dtype]:.3g}: {tokens} x {width} {dtype}")
    return error


def route_step(requests: int, tokens_each: int, device: str) -> dict[str, Any]:
    """Inputs of one step in which every second request has 4 ranges."""
    table = RouteTable.empty(requests, device)
    for request in range(0, requests, 2):
        ranges = [(start, start + 5) for start in range(request % 7, 40, 10)]
        table.set(request, slot=request + 1, prompt_length=38, ranges=ranges)
    total = requests * tokens_each
    return {
        "token_slot": torch.full((total + 64,), 9, dtype=torch.int32, device=device),
        "token_position": torch.zeros(total + 64, dtype=torch.int64, device=device),
        "table": table,
        "query_start_loc": torch.arange(requests + 1, dtype=torch.int32, device=device) * tokens_each,
        "positions": torch.arange(total, device=device) % max(1, tokens_each),
        "request_slots": torch.arange(requests, dtype=torch.int32, device=device).flip(0),
        "num_padded": total + 64,
    }


def check_route(requests: int, tokens_each: int) -> None:
    """Raises ValueError when the kernel and the reference differ."""
    device, host = route_step(requests, tokens_each, "cuda"), route_step(requests, tokens_each, "cpu")
    fill(**device)
    fill(**host, backend="torch")
    if not torch.equal(device["token_slot"].cpu(), host["token_slot"]):
        raise ValueError(f"slots differ: {requests} requests of {tokens_each} tokens")


def run_checks() -> dict[str, float]:
    """All comparisons; the largest corruption error per dtype."""
    errors = {}
    for name, dtype in DTYPES.items():
        shapes = [(1, 1), (63, 63), (257, 896), (64, 4096), (33, 5120), (16, 16384)]
        errors[name] = max(check_corrupt(tokens, width, dtype) for tokens, width in shapes)
    for requests, tokens_each in ((1, 1), (7, 63), (256, 1), (512, 33)):
        check_route(requests, tokens_each)
    return errors


def run_timings(width: int) -> list[Timing]:
    """Untouched, fully touched per kind, and the fill, in bfloat16."""
    results = []
    table = corruption_table("cuda")
    for tokens in (256, 8192):
        hidden = torch.randn(tokens, width, device="cuda").to(torch.bfloat16)
        positions = torch.arange(tokens, device="cuda")
        for slot, kind in enumerate(("untouched", *KINDS)):
            slots = torch.full((tokens,), slot, dtype=torch.int32, device="cuda")
            moved = tokens * 4 + (2 * hidden.numel() * 2 + tokens * 8 if slot else 0)
            call = lambda h=hidden, s=slots, p=positions: corrupt(h, s, p, table)  # noqa: E731
            results.append(timing("corrupt", f"{kind} {tokens} x {width}", moved, call))
    for requests, tokens_each in ((256, 1), (256, 32)):
        step = route_step(requests, tokens_each, "cuda")
        moved = requests * tokens_each * 20
        results.append(timing("fill", f"{requests} x {tokens_each}", moved, lambda s=step: fill(**s)))
    return results


def main() -> int:
    """Command line; 0 when every kernel is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=4096)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("no CUDA or ROCm device\n")
        return 2
    try:
        errors = run_checks()
        edit_errors = edit_checks()
    except ValueError as error:
        sys.stderr.write(f"wrong result: {error}\n")
        return 1
    timings = [*run_timings(arguments.width), *edit_timings()]
    report = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "python": platform.python_version(),
        "largest_error": errors, "largest_edit_error": edit_errors, "timings": [asdict(each) for each in timings],
        "argv": sys.argv[1:],
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for each in timings:
        sys.stdout.write(f"{each.kernel:14} {each.case:34} p50 {each.p50_us:9.2f} us  {each.share:5.2f} of copy\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
