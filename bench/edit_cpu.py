"""Where the time of an edit goes on a CPU: one call at one site against the bytes of the bank that it must read.

    python bench/edit_cpu.py --out bench/results/edit_cpu.json

256 tokens of K distinct slots, rank 16, float32 bank, as in `bench/tenants.py`. `share` is (bytes of bank rows / time)
over the rate at which this machine reads memory in a sum, measured in the same run with the same threads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from guard.kernels.edit import EditBank, edit
from guard.kernels.edit_formula import EditRow

TOKENS, RANK, SLOTS = 256, 16, 256
WIDTHS = {"bundled": 256, "half_billion": 896}
DISTINCT = (0, 1, 8, 32, 64, 128, 256)
REPEATS = 30


def seconds(call: Callable[[], object]) -> float:
    """Median time of one call."""
    for _ in range(3):
        call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times)


def filled_bank(width: int) -> EditBank:
    """A clamp of 16 random features in every slot."""
    bank = EditBank.empty(1, SLOTS + 1, width, RANK)
    zeros = torch.zeros(RANK)
    for slot in range(1, SLOTS + 1):
        read = torch.randn(RANK, width, generator=torch.Generator().manual_seed(slot))
        bank.set(0, slot, EditRow(read=read, write=read, bias=zeros, gain=zeros - 1, offset=zeros, threshold=zeros))
    return bank


def measure(width: int, read_rate: float) -> dict[str, Any]:
    """Time of one call for each number of distinct slots."""
    bank, site = filled_bank(width), torch.zeros(1, dtype=torch.int32)
    hidden, strength = torch.randn(TOKENS, width), torch.zeros(4, TOKENS)
    results = {}
    for distinct in DISTINCT:
        lane = torch.zeros(4, TOKENS, dtype=torch.int32)
        if distinct:
            lane[0] = torch.arange(TOKENS, dtype=torch.int32) % distinct + 1
        elapsed = seconds(lambda lane=lane: edit(hidden, None, site, lane, strength, bank))  # type: ignore[misc]
        read = distinct * 2 * RANK * width * 4
        share = round(read / elapsed / read_rate, 3) if distinct else 0.0
        results[str(distinct)] = {"ms": round(elapsed * 1e3, 3), "bank_bytes": read, "share": share}
    return results


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    large = torch.ones(32 << 20)
    read_rate = large.nbytes / seconds(large.sum)
    report: dict[str, Any] = {"threads": torch.get_num_threads(), "read_gb_s": round(read_rate / 1e9, 1)}
    for name, width in WIDTHS.items():
        report[name] = measure(width, read_rate)
    chosen.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
