"""Residency against the store of the workers: real packs, real banks, two ranks that steer different layers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from guard.errors import ResidencyError
from guard.interventions.steer import save_steer
from guard.kernels.edit import EditBank
from guard.metrics import Metrics
from guard.packs.bank import EditSlots
from guard.service.residency.engine_loads import EngineLoads
from guard.service.residency.residents import Capacity, Residents
from guard.service.store.pack_files import copy_pack, pack_path
from guard.site import Site

MODEL = "fp1:" + "a" * 64
SITES = tuple(Site(layer, "resid_post") for layer in range(4))
WIDTH = 8


class Ranks:
    """Two pipeline stages with a bank each; answers the calls of the residency like `GuardWorker`."""

    def __init__(self, capacity: int) -> None:
        self.slots = [self._rank(capacity, local) for local in (SITES[:2], SITES[2:])]

    @staticmethod
    def _rank(capacity: int, local: tuple[Site, ...]) -> EditSlots:
        bank = EditBank.empty(len(SITES), capacity + 1, WIDTH, 16, torch.float32, torch.device("cpu"))
        return EditSlots(bank, sites=SITES, local=local, fingerprint=MODEL, num_layers=len(SITES))

    async def call(self, method: str, arguments: tuple[Any, ...]) -> list[Any]:
        await asyncio.sleep(0)
        arguments = arguments[1:]
        if method == "guard_stage":
            arguments = (Path(arguments[0]), *arguments[1:])
        return [getattr(rank, method.removeprefix("guard_"))(*arguments) for rank in self.slots]

    def resident(self, digest: str) -> bool:
        """Whether every rank has the pack."""
        return all(rank.slot_of(digest) is not None for rank in self.slots)


@pytest.fixture
def add(tmp_path: Path) -> Callable[..., str]:
    """Put a steering pack into the store's folder and return its content hash."""

    def make(value: float, model: str = MODEL) -> str:
        vectors = {site: torch.full((WIDTH,), value) for site in (SITES[0], SITES[3])}
        pack = save_steer(
            tmp_path / "made.safetensors", vectors, model_fingerprint=model, fit_data_digest="0" * 64, fit_report={},
            licence="Apache-2.0",
        )
        copy_pack(pack, tmp_path)
        return pack.content_hash

    return make


def residency(ranks: Ranks, home: Path, capacity: int, timeout_s: float = 10.0) -> Residents:
    loads = EngineLoads("edit", ranks.call, lambda digest: pack_path(home, digest))
    return Residents(loads, Capacity(capacity), timeout_s, Metrics(CollectorRegistry()))


async def test_packs_come_and_go_on_all_ranks(add: Callable[..., str], tmp_path: Path) -> None:
    ranks = Ranks(2)
    packs = residency(ranks, tmp_path, 2)
    first, second, third = add(1.0), add(2.0), add(3.0)
    await packs.acquire([first, second])
    assert ranks.resident(first) and ranks.resident(second)
    packs.release([first])
    await packs.acquire([third])
    assert [ranks.resident(each) for each in (first, second, third)] == [False, True, True]
    assert [rank.counters()["resident"] for rank in ranks.slots] == [2, 2]


async def test_a_slot_that_the_batch_still_uses_is_waited_for(add: Callable[..., str], tmp_path: Path) -> None:
    ranks = Ranks(1)
    packs = residency(ranks, tmp_path, 1)
    first, second = add(1.0), add(2.0)
    await packs.acquire([first])
    ranks.slots[1].acquire(first)  # the request is in the batch of one rank
    packs.release([first])
    waiting = asyncio.create_task(packs.acquire([second]))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    ranks.slots[1].drop(first)
    await waiting
    assert ranks.resident(second) and ranks.slots[1].slot_of(first) is None


@pytest.mark.parametrize("fault", ["truncated", "missing", "other model", "another pack"])
async def test_a_bad_file_fails_alone_and_can_be_repaired(fault: str, add: Callable[..., str], tmp_path: Path) -> None:
    ranks = Ranks(2)
    packs = residency(ranks, tmp_path, 2)
    good, bad = add(1.0), add(2.0, model="fp1:" + "b" * 64) if fault == "other model" else add(2.0)
    path = pack_path(tmp_path, bad)
    content = path.read_bytes()
    if fault == "truncated":
        path.write_bytes(content[:-8])
    elif fault == "missing":
        path.unlink()
    elif fault == "another pack":
        path.write_bytes(pack_path(tmp_path, good).read_bytes())
    await packs.acquire([good])
    with pytest.raises(ResidencyError):
        await packs.acquire([bad, good])
    assert (len(packs.failures), ranks.resident(good), ranks.resident(bad)) == (1, True, False)
    if fault != "other model":
        path.write_bytes(content)
        await packs.acquire([bad, good])
        assert (len(packs.failures), ranks.resident(bad)) == (0, True)


async def test_more_packs_than_slots_under_load(add: Callable[..., str], tmp_path: Path) -> None:
    ranks, chance = Ranks(4), random.Random(7)
    packs = residency(ranks, tmp_path, 4, timeout_s=60.0)
    known = [add(float(number)) for number in range(1, 11)]

    async def request() -> None:
        digests = chance.sample(known, chance.randint(1, 4))
        await packs.acquire(digests)
        for rank in ranks.slots:
            for digest in digests:
                rank.acquire(digest)
        await asyncio.sleep(chance.random() * 0.005)
        assert all(map(ranks.resident, digests))
        packs.release(digests)
        await asyncio.sleep(0.002)  # the workers hear of the end a step later
        for rank in ranks.slots:
            for digest in digests:
                rank.drop(digest)

    await asyncio.wait_for(asyncio.gather(*(request() for _ in range(60))), 60.0)
    assert len(packs.failures) == 0
    assert all(rank.counters()["resident"] == 4 for rank in ranks.slots)
