"""Packs in the store: names, the policies that hold on to them, and what apply checks against the running server."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guard.errors import EngineMismatchError, StoreError, TenantFileError
from guard.policy import Policy, TenantFile, TenantSpec
from guard.service.store.edit_resolution import NO_FINGERPRINT
from guard.service.store.engine_record import EngineRecord, engine_record
from guard.service.store.pack_records import PackRecord
from guard.service.store.store import Store

MODEL = "fp1:" + "a" * 64
ENGINE = EngineRecord(("1.resid_post", "3.resid_post"), max_slots=8, max_rank=16, width=64, num_layers=4,
                      model_fingerprint=MODEL)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "guard.db", b"p" * 32)
    made.migrate()
    return made


def record(name: str = "calm", digit: str = "1", **changes: Any) -> PackRecord:
    """A pack whose content hash is `digit` 64 times."""
    values: dict[str, Any] = {
        "kind": "edit", "method": "steer", "sites": ("1.resid_post",), "rank": 0, "model_fingerprint": MODEL,
        "header": "{}", "created_s": time.time(), **changes,
    }
    return PackRecord(name, digit * 64, **values)


def tenant_file(*packs: str, name: str = "acme") -> TenantFile:
    """A tenant that edits every request with `packs`."""
    policy = Policy.model_validate({"edits": [{"pack": pack, "when": "always"} for pack in packs]})
    return TenantFile(tenants=(TenantSpec(name="open"), TenantSpec(name=name, policy=policy)))


def packs_of(store: Store, name: str = "acme") -> list[str]:
    return [edit.pack for edit in store.snapshot().tenants[name].policy.edits]


def test_a_pack_is_listed_with_what_its_header_says(store: Store) -> None:
    added = record(rank=7, header='{"kind": "edit"}')
    assert store.add_pack(added, actor="cli:ada")
    assert store.packs() == (added,)
    assert not store.add_pack(added)
    assert [(event.action, event.actor) for event in store.audit_events()] == [("pack.add", "cli:ada")]


def test_a_name_moves_only_when_it_is_told_to(store: Store) -> None:
    store.add_pack(record())
    with pytest.raises(StoreError, match="--replace"):
        store.add_pack(record(digit="2"))
    assert store.packs()[0].content_hash == "1" * 64
    assert store.add_pack(record(digit="2"), replace=True)
    assert [pack.content_hash for pack in store.packs()] == ["2" * 64]


def test_a_stored_policy_names_packs_by_content(store: Store) -> None:
    store.add_pack(record())
    store.publish(tenant_file("calm"))
    first = store.snapshot().tenants["acme"]
    assert packs_of(store) == ["1" * 64]
    store.add_pack(record(digit="2"), replace=True)
    assert store.snapshot().tenants["acme"] == first
    (_, change) = store.publish(tenant_file("calm"))
    assert (change.kind, packs_of(store)) == ("updated", ["2" * 64])
    assert change.policy_version != first.policy_version


def test_a_pack_can_be_named_by_its_hash(store: Store) -> None:
    store.add_pack(record())
    by_name = store.publish(tenant_file("calm"))
    by_hash = store.publish(tenant_file("1" * 64))
    assert [change.kind for change in by_hash] == ["unchanged"] * 2
    assert by_name[1].policy_version == by_hash[1].policy_version


@pytest.mark.parametrize("pack", ["other", "2" * 64])
def test_an_unknown_pack_fails_before_anything_changes(store: Store, pack: str) -> None:
    store.add_pack(record())
    store.publish(tenant_file("calm"))
    before = store.snapshot()
    with pytest.raises(TenantFileError, match="the store has no pack") as caught:
        store.publish(tenant_file("calm", pack))
    assert caught.value.field == "tenants[1].policy.edits[1].pack"
    assert store.snapshot() == before


def test_a_pack_that_is_no_edit_is_refused(store: Store) -> None:
    store.add_pack(record(kind="corruption"))
    with pytest.raises(TenantFileError, match="kind corruption, not an edit"):
        store.publish(tenant_file("calm"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sites": ("1.resid_post", "2.mlp_norm")}, "does not steer: 2.mlp_norm; steerable: 1.resid_post, 3.resid_pos"),
        ({"rank": 17}, "rank 17, the server takes 16"),
        ({"model_fingerprint": "fp1:" + "b" * 64}, "made for the model fp1:bbb"),
    ],
)
def test_a_pack_that_the_server_cannot_apply_is_told_at_apply(
    store: Store, changes: dict[str, Any], reason: str
) -> None:
    store.add_pack(record(**changes))
    store.publish(tenant_file("calm"))  # no server has started: nothing to compare with
    store.record_engine(ENGINE)
    with pytest.raises(TenantFileError, match=reason):
        store.publish(tenant_file("calm", name="later"))
    assert "later" not in store.snapshot().tenants
    store.add_pack(record("fitting", "2", sites=ENGINE.sites, rank=16))
    store.publish(tenant_file("fitting", name="later"))
    assert packs_of(store, "later") == ["2" * 64]


def test_a_model_without_fingerprint_takes_no_packs(store: Store) -> None:
    store.add_pack(record())
    store.record_engine(replace(ENGINE, model_fingerprint=NO_FINGERPRINT))
    with pytest.raises(TenantFileError, match="not in a local folder"):
        store.publish(tenant_file("calm"))


def test_the_server_that_started_last_is_the_one_that_counts(store: Store) -> None:
    store.record_engine(ENGINE)
    revision = store.revision()
    store.record_engine(EngineRecord((), 1, 16, 64, 4, MODEL))
    assert store.engine_record() == EngineRecord((), 1, 16, 64, 4, MODEL)
    assert store.revision() == revision
    store.add_pack(record())
    with pytest.raises(TenantFileError, match="steerable: none"):
        store.publish(tenant_file("calm"))


def test_a_pack_in_use_cannot_be_removed(store: Store) -> None:
    store.add_pack(record())
    store.publish(tenant_file("calm"))
    with pytest.raises(StoreError, match="policy of acme refers"):
        store.remove_pack("calm")
    assert [pack.name for pack in store.packs()] == ["calm"]
    store.add_pack(record("second-name"))
    assert store.remove_pack("calm") == "1" * 64
    assert store.pack_needed("1" * 64)
    store.delete_tenant("acme")
    assert store.remove_pack("second-name") == "1" * 64
    assert not store.pack_needed("1" * 64)


def test_a_pack_without_a_name_is_needed_while_a_policy_refers_to_it(store: Store) -> None:
    store.add_pack(record())
    store.publish(tenant_file("calm"))
    store.add_pack(record(digit="2"), replace=True)
    assert store.pack_needed("1" * 64)
    store.publish(tenant_file("calm"))
    assert not store.pack_needed("1" * 64)


def test_an_unknown_name_cannot_be_removed(store: Store) -> None:
    with pytest.raises(StoreError, match="there is no pack calm"):
        store.remove_pack("calm")


def test_a_policy_that_was_altered_to_another_pack_is_noticed(store: Store, tmp_path: Path) -> None:
    store.add_pack(record())
    store.publish(tenant_file("calm"))
    with sqlite3.connect(tmp_path / "guard.db") as connection:
        connection.execute("UPDATE guard_policy SET content = replace(content, ?, ?)", ("1" * 64, "2" * 64))
    with pytest.raises(StoreError, match="does not match its version"):
        Store(tmp_path / "guard.db", b"p" * 32).snapshot()


def ping(*sites: str, **changes: Any) -> dict[str, Any]:
    """One rank's answer to `guard_ping`, as far as edits go."""
    return {"sites": sites, "max_slots": 8, "max_rank": 16, "width": 64, "num_layers": 12, "fingerprint": MODEL,
            **changes}


def test_ranks_of_a_pipeline_add_up_to_the_steerable_sites() -> None:
    found = engine_record([ping("10.resid_post", "7.resid_post"), ping("1.mlp_norm"), ping("1.mlp_norm")])
    assert found.sites == ("1.mlp_norm", "7.resid_post", "10.resid_post")
    assert (found.max_slots, found.max_rank, found.model_fingerprint) == (8, 16, MODEL)


def test_ranks_that_disagree_are_refused() -> None:
    with pytest.raises(EngineMismatchError):
        engine_record([ping("1.mlp_norm"), ping("1.mlp_norm", max_slots=9)])
