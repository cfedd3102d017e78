"""The edit bank's slots: what may be loaded, when a slot is given away, and that a resident pack never changes."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from guard.errors import PackError, ResidencyError
from guard.interventions.edits import edit_rows
from guard.interventions.steer import save_steer
from guard.kernels.edit import EditBank, edit
from guard.kernels.edit_formula import edited
from guard.packs.bank import memory_bytes
from guard.packs.format import HEADER_FILE, TENSOR_FILE, Pack, PackHeader, content_hash, load_pack, save_pack
from guard.site import Site
from tests.packs.bank_packs import (
    ORIGIN,
    PACKS,
    SITES,
    WIDTH,
    Stored,
    assert_holds,
    basis_pack,
    empty_bank,
    load,
    map_pack,
    numbers,
    sae_pack,
    slots_of,
    steer_pack,
    truncated_pack,
    wait,
)

OTHER = "fp1:" + "b" * 64

@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_committed_pack_edits_as_its_rows_say(dtype: torch.dtype, keep_norm: bool, tmp_path: Path) -> None:
    bank = empty_bank(dtype)
    slots = slots_of(bank)
    projection = basis_pack(tmp_path / "q", 5, keep_norm=keep_norm)
    packs = (sae_pack(tmp_path / "sae"), map_pack(tmp_path / "maps"), projection)
    for number, stored in enumerate(packs):
        slot = load(slots, stored)
        assert slot == slots.slot_of(stored.digest) == number + 1
        rows = edit_rows(stored.pack)
        assert slots.sites_of(stored.digest) == len(rows)
        for site, row in rows.items():
            hidden = numbers(99, 6, WIDTH)
            expected = edited(hidden, row, 0.5)
            lane, strength = torch.zeros(4, 6, dtype=torch.int32), torch.full((4, 6), 0.5)
            lane[0] = slot
            edit(hidden, None, torch.tensor([SITES.index(site)], dtype=torch.int32), lane, strength, bank)
            torch.testing.assert_close(hidden, expected, atol=1e-4 if dtype == torch.float32 else 0.2, rtol=0.02)
    assert slots.counters() == {
        "resident": 3, "capacity": 3, "loads": 3, "releases": 0, "edited_tokens": 6 * (1 + 3 + 1),
    }


def test_a_rank_holds_the_rows_of_its_own_sites_and_accepts_the_rest(tmp_path: Path) -> None:
    bank, local = empty_bank(), SITES[:2]
    slots = slots_of(bank, local)
    for stored, count in ((map_pack(tmp_path / "maps"), 2), (basis_pack(tmp_path / "q", 2), 0)):
        slot = load(slots, stored)
        assert slots.sites_of(stored.digest) == count
        assert_holds(bank, slot, stored.pack, local)


def _forged(path: Path, tensors: Mapping[str, Tensor], **changes: Any) -> Stored:
    """A sealed pack of the method `subspace` that no save function would write."""
    header = {"kind": "edit", "method": "subspace", "sites": ("1.resid_post",), "parameters": {}, **ORIGIN, **changes}
    return Stored(path, save_pack(path, PackHeader.model_validate(header), tensors))


def _nan(path: Path) -> Stored:
    """A steering pack whose tensors became NaN and whose hash was made to fit."""
    good = steer_pack(path)
    bad = {"1.resid_post/vector": torch.full((WIDTH,), float("nan"))}
    save_file(bad, path / TENSOR_FILE)
    sealed = good.pack.header.model_copy(update={"content_hash": content_hash(good.pack.header, bad)})
    (path / HEADER_FILE).write_text(sealed.model_dump_json())
    return Stored(path, Pack(sealed, bad))


def _outside(path: Path) -> Stored:
    good = steer_pack(path)
    shutil.move(path / TENSOR_FILE, path.parent / "outside.safetensors")
    header = json.loads((path / HEADER_FILE).read_text())
    (path / HEADER_FILE).write_text(json.dumps(header | {"tensors": "../outside.safetensors"}))
    return good


def _for_another_model(path: Path) -> Stored:
    return Stored(path, save_steer(path, {SITES[0]: numbers(1, WIDTH)}, **(ORIGIN | {"model_fingerprint": OTHER})))


REFUSED: dict[str, tuple[Callable[[Path], Stored], str]] = {
    "width": (lambda path: steer_pack(path, width=WIDTH // 2), "hidden size 20"),
    "layer": (lambda path: steer_pack(path, sites=(Site(6, "resid_post"),)), r"layers 0\.\.5"),
    "site": (lambda path: steer_pack(path, sites=(Site(2, "mlp_norm"),)), "cannot edit at 2.mlp_norm.*--guard-sites"),
    "rank of the formula": (
        lambda path: _forged(path, {"1.resid_post/basis": torch.eye(33, WIDTH)}), "rank 33 exceeds 32",
    ),
    "rank of the bank": (lambda path: basis_pack(path, 17), "rank 17 exceeds the 16"),
    "nan": (_nan, "non-finite"),
    "truncated": (truncated_pack, "truncated"),
    "another model": (_for_another_model, "made for the model fp1:b"),
    "outside": (_outside, "outside the pack folder"),
    "kind": (lambda path: _forged(path, {}, kind="corruption"), "not an edit pack"),
    "missing": (lambda path: Stored(path, load_pack(steer_pack(path.parent / "elsewhere").path)), "missing"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_pack_that_cannot_be_used_is_refused_with_the_reason_and_changes_nothing(reason: str, tmp_path: Path) -> None:
    bank = empty_bank()
    slots = slots_of(bank)
    resident = steer_pack(tmp_path / "resident", seed=50)
    slot = load(slots, resident)
    before = [getattr(bank, name).clone() for name in EditBank.__slots__]
    make, message = REFUSED[reason]
    bad = make(tmp_path / "bad")
    slots.stage(bad.path, bad.digest)
    with pytest.raises(PackError, match=message):
        wait(slots, bad.digest)
    for call in (slots.staged, slots.commit, slots.acquire):
        with pytest.raises(ResidencyError):
            call(bad.digest)
    assert slots.slot_of(bad.digest) is None
    assert slots.slot_of(resident.digest) == slot
    assert all(torch.equal(getattr(bank, name), old) for name, old in zip(EditBank.__slots__, before, strict=True))


def test_a_pack_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    slots = slots_of(empty_bank())
    one, two = steer_pack(tmp_path / "one", 1), steer_pack(tmp_path / "two", 2)
    slots.stage(one.path, two.digest)
    with pytest.raises(PackError, match=f"not the pack {two.digest[:16]} but {one.digest[:16]}"):
        wait(slots, two.digest)


def test_numbers_that_overflow_in_the_dtype_of_the_bank_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large"
    large = Stored(path, save_steer(path, {SITES[0]: torch.full((WIDTH,), 3.4e38)}, **ORIGIN))
    assert load(slots_of(empty_bank()), large) == 1
    slots = slots_of(empty_bank(torch.bfloat16))
    slots.stage(large.path, large.digest)
    with pytest.raises(PackError, match="shift exceeds the range"):
        wait(slots, large.digest)


def test_a_repaired_pack_can_be_staged_again(tmp_path: Path) -> None:
    slots = slots_of(empty_bank())
    stored = steer_pack(tmp_path / "pack")
    kept = (stored.path / TENSOR_FILE).read_bytes()
    (stored.path / TENSOR_FILE).write_bytes(kept[:20])
    slots.stage(stored.path, stored.digest)
    with pytest.raises(PackError):
        wait(slots, stored.digest)
    (stored.path / TENSOR_FILE).write_bytes(kept)
    assert load(slots, stored) == 1


def test_more_packs_than_slots_wait_until_nobody_refers_to_one(tmp_path: Path) -> None:
    bank = empty_bank()
    slots = slots_of(bank)
    packs = [steer_pack(tmp_path / str(number), 10 * number) for number in range(PACKS + 1)]
    taken = [load(slots, stored) for stored in packs[:PACKS]]
    assert sorted(taken) == [1, 2, 3]
    last = packs[PACKS]
    slots.stage(last.path, last.digest)
    wait(slots, last.digest)
    with pytest.raises(ResidencyError, match="all 3 edit slots are in use"):
        slots.commit(last.digest)
    assert slots.staged(last.digest) == "ready"
    slots.acquire(packs[1].digest)
    slots.release(packs[1].digest)
    with pytest.raises(ResidencyError, match="in use"):
        slots.commit(last.digest)
    assert_holds(bank, taken[1], packs[1].pack)
    bank.counts[0, taken[1]] += 7
    slots.drop(packs[1].digest)
    assert not bank.parts[:, taken[1]].any()
    assert slots.commit(last.digest) == taken[1]
    assert_holds(bank, taken[1], last.pack)
    assert slots.counters()["edited_tokens"] == 7


def test_a_pack_that_is_wanted_again_while_it_leaves_stays(tmp_path: Path) -> None:
    slots = slots_of(empty_bank())
    stored = steer_pack(tmp_path / "pack")
    slot = load(slots, stored)
    for again in (slots.commit, lambda digest: slots.stage(stored.path, digest)):
        slots.acquire(stored.digest)
        slots.release(stored.digest)
        again(stored.digest)
        slots.drop(stored.digest)
        assert slots.slot_of(stored.digest) == slot
    slots.release(stored.digest)
    assert slots.slot_of(stored.digest) is None
    with pytest.raises(ResidencyError, match="not resident"):
        slots.drop(stored.digest)


def test_packs_are_read_while_the_engine_goes_on(tmp_path: Path) -> None:
    """A pack behind a slow disk: everything but the pack itself answers at once."""
    bank = empty_bank()
    slots = slots_of(bank)
    resident, slow = steer_pack(tmp_path / "resident", 1), steer_pack(tmp_path / "slow", 2)
    header = (slow.path / HEADER_FILE).read_text()
    (slow.path / HEADER_FILE).unlink()
    os.mkfifo(slow.path / HEADER_FILE)
    slots.stage(slow.path, slow.digest)
    slots.stage(slow.path, slow.digest)
    assert slots.staged(slow.digest) == "loading"
    with pytest.raises(ResidencyError, match="not read yet"):
        slots.commit(slow.digest)
    slot = load(slots, resident)
    writer = threading.Thread(target=(slow.path / HEADER_FILE).write_text, args=(header,))
    writer.start()
    assert wait(slots, slow.digest) == "ready"
    writer.join()
    assert slots.commit(slow.digest) == slot + 1


def test_threads_that_share_the_slots_lose_nothing(tmp_path: Path) -> None:
    bank = empty_bank()
    slots = slots_of(bank)
    packs = [steer_pack(tmp_path / str(number), 10 * number) for number in range(PACKS)]

    def use(stored: Stored) -> None:
        for _ in range(20):
            load(slots, stored)
            slots.acquire(stored.digest)
            slots.release(stored.digest)
            slots.drop(stored.digest)

    with ThreadPoolExecutor(PACKS) as pool:
        list(pool.map(use, packs))
    assert slots.counters() == {"resident": 0, "capacity": 3, "loads": 60, "releases": 60, "edited_tokens": 0}
    assert not bank.parts.any()


def test_the_memory_of_a_bank_is_known_before_it_is_allocated() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert memory_bytes(len(SITES), PACKS + 1, WIDTH, 20, dtype) == EditBank.empty(
            len(SITES), PACKS + 1, WIDTH, 20, dtype
        ).size_bytes
