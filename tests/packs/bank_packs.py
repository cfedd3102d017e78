"""Small packs of every shape for the tests of the edit bank, and what a slot of the bank must then hold."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guard.interventions.edits import edit_rows
from guard.interventions.lineas import save_lineas
from guard.interventions.sae import SaeConfig, SaeFeatures, save_sae
from guard.interventions.steer import save_steer
from guard.interventions.subspace import save_subspace
from guard.kernels.edit import EditBank
from guard.packs.bank import EditSlots
from guard.packs.format import TENSOR_FILE, Pack
from guard.site import Site

MODEL = "fp1:" + "a" * 64
ORIGIN: dict[str, Any] = {
    "model_fingerprint": MODEL, "fit_data_digest": "c" * 64, "fit_report": {}, "licence": "MIT",
}
WIDTH, LAYERS, MAX_RANK, PACKS = 40, 6, 16, 3
SITES = (Site(1, "resid_post"), Site(2, "attn_norm"), Site(4, "resid_post"))


@dataclass(frozen=True)
class Stored:
    """A pack on disk."""

    path: Path
    pack: Pack

    @property
    def digest(self) -> str:
        return self.pack.content_hash


def numbers(seed: int, *shape: int) -> Tensor:
    """Normal numbers that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steer_pack(path: Path, seed: int = 0, sites: tuple[Site, ...] = SITES[:1], width: int = WIDTH) -> Stored:
    """Vectors at `sites`."""
    vectors = {site: numbers(seed + site.layer, width) for site in sites}
    return Stored(path, save_steer(path, vectors, **ORIGIN))


def basis_pack(path: Path, rank: int, *, keep_norm: bool = False) -> Stored:
    """A projection of rank `rank` at the last site."""
    basis = torch.linalg.qr(numbers(rank, WIDTH, rank)).Q.T.contiguous()
    return Stored(path, save_subspace(path, {SITES[2]: basis}, keep_norm=keep_norm, **ORIGIN))


def sae_pack(path: Path) -> Stored:
    """Five features of an autoencoder at the first site."""
    features = SaeFeatures(numbers(1, 5, WIDTH), numbers(2, 5), numbers(3, 5).abs(), numbers(4, 5, WIDTH))
    return Stored(path, save_sae(path, {SITES[0]: features}, SaeConfig(value=-2.0, gate="any"), **ORIGIN))


def map_pack(path: Path) -> Stored:
    """Maps at all sites."""
    maps = {site: (1 + numbers(7 + site.layer, WIDTH), numbers(8 + site.layer, WIDTH)) for site in SITES}
    return Stored(path, save_lineas(path, maps, **ORIGIN))


def empty_bank(dtype: torch.dtype = torch.float32) -> EditBank:
    """A bank for PACKS packs."""
    return EditBank.empty(len(SITES), PACKS + 1, WIDTH, MAX_RANK, dtype)


def slots_of(bank: EditBank, local: tuple[Site, ...] = SITES) -> EditSlots:
    """Its slots, on a rank that has the sites `local`."""
    return EditSlots(bank, sites=SITES, local=local, fingerprint=MODEL, num_layers=LAYERS)


def wait(slots: EditSlots, digest: str) -> str:
    """The state once the pack is read."""
    deadline_s = time.monotonic() + 30
    while (state := slots.staged(digest)) == "loading":
        assert time.monotonic() < deadline_s
        time.sleep(0.0005)
    return state


def load(slots: EditSlots, stored: Stored) -> int:
    """Stage, wait and commit."""
    slots.stage(stored.path, stored.digest)
    assert wait(slots, stored.digest) in ("ready", "resident")
    return slots.commit(stored.digest)


def assert_holds(bank: EditBank, slot: int, pack: Pack | None, local: tuple[Site, ...] = SITES) -> None:
    """The slot has exactly the rows of `pack` at the sites of this rank."""
    rows = {} if pack is None else edit_rows(pack)
    for index, site in enumerate(SITES):
        if site not in rows or site not in local:
            assert int(bank.parts[index, slot]) == 0
            continue
        wanted = EditBank.empty(1, 2, WIDTH, MAX_RANK, bank.read.dtype)
        wanted.set(0, 1, rows[site])
        # a low rank uses the first rows only
        used = dict.fromkeys(("read", "write", "bias", "gain", "offset", "threshold"), rows[site].rank)
        for name in ("scale", "shift", *used):
            found, right = getattr(bank, name)[index, slot], getattr(wanted, name)[0, 1]
            assert torch.equal(found[: used.get(name, WIDTH)], right[: used.get(name, WIDTH)]), name
        assert (bank.rank[index, slot], bank.parts[index, slot]) == (wanted.rank[0, 1], wanted.parts[0, 1])


def truncated_pack(path: Path) -> Stored:
    """A steering pack that has lost its last bytes."""
    good = steer_pack(path, 77)
    file = path / TENSOR_FILE
    file.write_bytes(file.read_bytes()[:-9])
    return good
