"""Random calls of the edit bank's slots against a model of sets and counts."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from guard.errors import PackError, ResidencyError
from guard.kernels.edit import RESIDENT
from tests.packs.bank_packs import (
    PACKS,
    SITES,
    Stored,
    assert_holds,
    basis_pack,
    empty_bank,
    map_pack,
    sae_pack,
    slots_of,
    steer_pack,
    truncated_pack,
    wait,
)

CHOICES = 5


class Calls(RuleBasedStateMachine):
    """`where` maps resident packs to slots; a released pack stays there while it has references."""

    packs: ClassVar[list[Stored]] = []
    damaged: ClassVar[Stored]

    def __init__(self) -> None:
        super().__init__()
        self.bank = empty_bank()
        self.slots = slots_of(self.bank)
        self.staged: set[str] = set()
        self.where: dict[str, int] = {}
        self.references: dict[str, int] = {}
        self.released: set[str] = set()
        self.counted = 0

    @rule(number=st.integers(0, CHOICES - 1))
    def stage(self, number: int) -> None:
        stored = self.packs[number]
        self.slots.stage(stored.path, stored.digest)
        resident = stored.digest in self.where
        assert wait(self.slots, stored.digest) == ("resident" if resident else "ready")
        self.released.discard(stored.digest)
        if not resident:
            self.staged.add(stored.digest)

    @rule()
    def stage_a_damaged_pack(self) -> None:
        self.slots.stage(self.damaged.path, self.damaged.digest)
        with pytest.raises(PackError):
            wait(self.slots, self.damaged.digest)

    @rule(number=st.integers(0, CHOICES - 1))
    def commit(self, number: int) -> None:
        digest = self.packs[number].digest
        if digest not in self.where and (digest not in self.staged or len(self.where) == PACKS):
            with pytest.raises(ResidencyError):
                self.slots.commit(digest)
            return
        slot = self.slots.commit(digest)
        assert slot == self.where.get(digest, slot)
        assert slot not in {other for name, other in self.where.items() if name != digest}
        self.where[digest] = slot
        self.staged.discard(digest)
        self.released.discard(digest)
        self.references.setdefault(digest, 0)

    @precondition(lambda self: self.where)
    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.where)))
        self.slots.acquire(digest)
        self.references[digest] += 1
        # as a step of this request would
        self.bank.counts[1, self.where[digest]] += 3
        self.counted += 3

    @precondition(lambda self: any(self.references.values()))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(name for name, count in self.references.items() if count)))
        self.slots.drop(digest)
        self.references[digest] -= 1
        self._forget(digest)

    @rule(number=st.integers(0, CHOICES - 1))
    def release(self, number: int) -> None:
        digest = self.packs[number].digest
        self.slots.release(digest)
        self.staged.discard(digest)
        if digest in self.where:
            self.released.add(digest)
            self._forget(digest)

    def _forget(self, digest: str) -> None:
        if digest in self.released and not self.references[digest]:
            self.released.discard(digest)
            del self.where[digest], self.references[digest]

    @invariant()
    def the_bank_holds_the_rows_of_the_packs_that_own_its_slots(self) -> None:
        owner = {slot: digest for digest, slot in self.where.items()}
        for slot in range(1, PACKS + 1):
            found = [stored.pack for stored in self.packs if stored.digest == owner.get(slot)]
            assert_holds(self.bank, slot, found[0] if found else None)
        assert not (self.bank.parts[:, 0] & RESIDENT).any()

    @invariant()
    def the_slots_say_what_is_resident(self) -> None:
        for stored in self.packs:
            assert self.slots.slot_of(stored.digest) == self.where.get(stored.digest)
        counters = self.slots.counters()
        assert (counters["resident"], counters["edited_tokens"]) == (len(self.where), self.counted)
        assert counters["loads"] - counters["releases"] == len(self.where)


def test_slots_keep_their_invariants_in_any_order_of_calls(tmp_path: Path) -> None:
    Calls.packs = [
        sae_pack(tmp_path / "0"), map_pack(tmp_path / "1"), basis_pack(tmp_path / "2", 3), steer_pack(tmp_path / "3"),
        steer_pack(tmp_path / "4", 5, SITES[1:]),
    ]
    Calls.damaged = truncated_pack(tmp_path / "damaged")
    run_state_machine_as_test(Calls, settings=settings(max_examples=25, stateful_step_count=30, deadline=None))
