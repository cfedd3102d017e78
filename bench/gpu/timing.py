"""Times on the device, and the same bytes copied as the measure: part of `bench/gpu/kernels.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles

import torch

REPEATS = 50


@dataclass(frozen=True, slots=True)
class Timing:
    """One timed case; times in microseconds, bandwidth in GB/s."""

    kernel: str
    case: str
    p20_us: float
    p50_us: float
    p80_us: float
    bytes_moved: int
    copy_gb_s: float
    share: float


def timed_us(call: Callable[[], object]) -> list[float]:
    """Percentiles 20, 50, 80 of one call in microseconds."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for _ in range(5):
        call()
    times = []
    for _ in range(REPEATS):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    cuts = quantiles(times, n=10)
    return [cuts[1], cuts[4], cuts[7]]


def timing(kernel: str, case: str, bytes_moved: int, call: Callable[[], object]) -> Timing:
    """Time `call` and a plain copy that moves as many bytes."""
    low, middle, high = timed_us(call)
    source = torch.empty(max(1, bytes_moved // 2), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_us = timed_us(lambda: target.copy_(source))[1]
    copy_rate = bytes_moved / copy_us / 1e3
    return Timing(
        kernel, case, round(low, 2), round(middle, 2), round(high, 2), bytes_moved, round(copy_rate, 1),
        round(copy_us / middle, 3),
    )
