"""Prompts, plans and sizes of the engine scenarios; the tests compute the expected numbers from the same values."""

from __future__ import annotations

import random
from typing import Any

from guard.plan import Corruption, Plan

BLOCK_TOKENS = 32
CACHE_BLOCKS = 21
CHUNK_TOKENS = 64
BATCH = 16
TOP = 5
SHORT, LONG, PREEMPTED = 24, 150, 190
LIFETIME_S = 3600.0
EDIT_SLOTS = 6


def prompt_ids(seed: int, length: int, vocab_size: int = 4096) -> list[int]:
    """A random prompt without special tokens."""
    generator = random.Random(seed)
    return [generator.randrange(10, vocab_size) for _ in range(length)]


def corruption(seed: int, *ranges: tuple[int, int], rho: float = 4.0) -> Corruption:
    """Gaussian corruption of `ranges`."""
    return Corruption(kind="gauss", rho=rho, seed=seed, ranges=ranges)


def plan(length: int, *, tenant: int = 0, version: str = "1", **parts: Any) -> Plan:
    """A plan for a prompt of `length` tokens."""
    return Plan(tenant_index=tenant, policy_version=version, prompt_length=length, **parts)


OPENINGS = ("I have no information on", "I do not know", "Nothing is known to me of")
PROMPT_ALONE = prompt_ids(1, SHORT)
PROMPT_LONG = prompt_ids(2, LONG)
BATCH_PROMPTS = [prompt_ids(100 + row, SHORT + row % 4) for row in range(BATCH)]
# crosses the borders between chunks at 64 and 128
PLAN_LONG = corruption(7, (10, 20), (60, 70), (127, 129), (140, 150))
PLAN_SHORT = corruption(11, (3, 9), (12, 14))
PLAN_OTHER = corruption(12, (3, 9), (12, 14))
