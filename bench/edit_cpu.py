"""Where the time of an edit goes on a CPU: one step's calls against the bytes of the bank that they must read.

    python bench/edit_cpu.py --out bench/results/edit_cpu.json

256 tokens of K distinct slots in random order, rank 16, bfloat16, at every site of the model in turn, as a step of
`bench/tenants.py` with all sites does: no site has its rows in a cache when its turn comes. `ms` is the time of
one call at one site. `share` is (bytes of bank rows / time) over the rate at which this machine reads memory in a sum,
measured in the same run with the same threads. vLLM's worker on a CPU has all cores but one, and so has this.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from guard.kernels.edit import RESIDENT, Backend, EditBank, edit

TOKENS, RANK, SLOTS = 256, 16, 256
# width and number of sites (three places in each layer)
SHAPES = {"bundled": (256, 24), "half_billion": (896, 72)}
DISTINCT = (0, 1, 8, 32, 64, 128, 256)
BACKENDS: tuple[Backend, ...] = ("native", "torch")
REPEATS = 5
LARGE_BYTES = 1 << 30


def seconds(call: Callable[[], object]) -> float:
    """Median time of one call."""
    call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times)


def filled_bank(sites: int, width: int) -> EditBank:
    """A clamp of 16 random features in every slot of every site."""
    bank = EditBank.empty(sites, SLOTS + 1, width, RANK, torch.bfloat16)
    bank.read.normal_()
    bank.write.normal_()
    bank.gain.fill_(-1.0)
    bank.rank.fill_(RANK)
    bank.parts.fill_(RESIDENT)
    return bank


def measure(sites: int, width: int, read_rate: float) -> dict[str, Any]:
    """Time of one call for each number of distinct slots."""
    bank, indices = filled_bank(sites, width), [torch.tensor([site], dtype=torch.int32) for site in range(sites)]
    hidden, residual = (torch.randn(TOKENS, width).bfloat16() for _ in range(2))
    strength, order = torch.zeros(4, TOKENS), torch.randperm(TOKENS)
    results: dict[str, Any] = {}
    for distinct in DISTINCT:
        lane = torch.zeros(4, TOKENS, dtype=torch.int32)
        if distinct:
            lane[0] = torch.arange(TOKENS, dtype=torch.int32)[order] % distinct + 1
        read = distinct * 2 * RANK * width * bank.read.element_size()
        results[str(distinct)] = {"bank_bytes": read}
        for backend in BACKENDS:

            def step(lane: torch.Tensor = lane, backend: Backend = backend) -> None:
                for site in indices:
                    edit(hidden, residual, site, lane, strength, bank, backend=backend)

            elapsed = seconds(step) / sites
            results[str(distinct)][backend] = {
                "ms": round(elapsed * 1e3, 3), "share": round(read / elapsed / read_rate, 3)
            }
    return results


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    chosen = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(chosen.threads)
    large = torch.ones(LARGE_BYTES // 4)
    read_rate = large.nbytes / seconds(large.sum)
    del large
    report: dict[str, Any] = {"threads": chosen.threads, "read_gb_s": round(read_rate / 1e9, 1)}
    for name, (width, sites) in SHAPES.items():
        report[name] = measure(sites, width, read_rate)
    chosen.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
