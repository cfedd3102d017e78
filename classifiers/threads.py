"""How many threads torch may take in the server's own process, beside an engine that needs the cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def spare_threads(most: int = 4) -> int:
    """Threads for one piece of torch work: one core is left to the engine, and small work gains nothing from many."""
    return max(1, min(most, (os.cpu_count() or 1) - 1))


@contextmanager
def at_most_threads(threads: int) -> Iterator[None]:
    """Cap torch's threads for a while: on busy cores every parallel region waits for the thread that has no core."""
    before = torch.get_num_threads()
    if before <= threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
