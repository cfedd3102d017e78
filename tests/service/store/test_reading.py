"""A store that reads only what has changed shows what one that reads everything shows, whatever happened in between."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from guard.errors import StoreError
from guard.policy import MAX_CHOICES, STORED, Policy, Target, TenantFile, TenantSpec
from guard.service.store import revisions
from guard.service.store.store import Store

PEPPER = b"p" * 32
NAMES = ("acme", "harbor", "open")
_LISTS = st.lists(st.text("abcdef \n\"\\é", min_size=1, max_size=6), max_size=3)
_PUBLISH = st.tuples(st.just("publish"), st.dictionaries(st.sampled_from(NAMES), _LISTS, min_size=1))
_OTHERS = st.tuples(st.sampled_from(["delete", "key", "revoke", "policy"]), st.sampled_from(NAMES))


def make_store(folder: Path) -> Store:
    store = Store(folder / "guard.db", PEPPER)
    store.migrate()
    return store


def publish(store: Store, **lists: list[str]) -> None:
    specs = (
        TenantSpec(name=name, targets=tuple(Target(name=target) for target in targets))
        for name, targets in lists.items()
    )
    store.publish(TenantFile(tenants=tuple(specs)))


def act(store: Store, what: str, argument: object) -> None:
    """One change by name; those that the store has nothing for do nothing."""
    if what == "publish" and isinstance(argument, dict):
        publish(store, **argument)
        return
    name = str(argument)
    if name not in {record.name for record in store.tenants()}:
        return
    if what == "delete":
        store.delete_tenant(name)
    elif what == "key":
        store.create_key(name)
    elif what == "policy":
        tenant = store.snapshot().tenants[name]
        policy = Policy(action="monitor" if tenant.policy.action == "forget" else "forget")
        store.publish(TenantFile(tenants=(TenantSpec(name=name, policy=policy, targets=tenant.targets),)))
    elif what == "revoke":
        for key in store.list_keys(name)[:1]:
            if key.revoked_s is None:
                store.revoke_key(key.id)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(_PUBLISH | _OTHERS, st.booleans()), min_size=1, max_size=12))
def test_reading_what_changed_shows_the_same_as_reading_everything(
    actions: list[tuple[tuple[str, object], bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer, reader = make_store(Path(folder)), Store(Path(folder) / "guard.db", PEPPER)
        publish(writer, acme=["Hina Ameen"], harbor=[])
        writer.create_keys(["acme", "acme", "harbor"])
        reader.snapshot()
        for (what, argument), look in actions:
            act(writer, what, argument)
            if look:
                assert reader.snapshot() == Store(Path(folder) / "guard.db", PEPPER).snapshot()
        assert reader.snapshot() == Store(Path(folder) / "guard.db", PEPPER).snapshot()


def test_after_one_change_the_other_tenants_are_not_read_again(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    publish(store, **{f"tenant-{number}": [f"Person {number}"] for number in range(700)})
    before = store.snapshot()
    publish(store, **{"tenant-3": ["Somebody Else"]})
    fetched: list[str] = []

    @event.listens_for(store._engine, "before_cursor_execute")
    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        fetched.append(statement)

    after = store.snapshot()
    assert [target.name for target in after.tenants["tenant-3"].targets] == ["Somebody Else"]
    assert sum(after.tenants[name] is before.tenants[name] for name in after.tenants) == 699
    of_tenants = [statement for statement in fetched if "guard_forget_list" in statement]
    assert of_tenants and all("guard_tenant.number IN" in statement for statement in of_tenants)


def test_a_snapshot_that_was_handed_out_does_not_change(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    publish(store, acme=["Hina Ameen"], harbor=["Jaime Vasquez"])
    store.create_key("acme")
    before = store.snapshot()
    names, keys = set(before.tenants), dict(before.keys)
    store.delete_tenant("acme")
    publish(store, later=["Xin Lee Williams"])
    assert set(store.snapshot().tenants) == {"harbor", "later"}
    assert (set(before.tenants), before.keys) == (names, keys)


def test_a_store_with_another_history_is_read_as_a_whole(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    publish(store, acme=["Hina Ameen"], harbor=["Jaime Vasquez"])
    with sqlite3.connect(tmp_path / "guard.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(tmp_path / "guard.db", tmp_path / "copy.db")
    publish(store, acme=["Xin Lee Williams"])
    reader = Store(tmp_path / "guard.db", PEPPER)
    assert [target.name for target in reader.snapshot().tenants["acme"].targets] == ["Xin Lee Williams"]
    # the copy goes its own way past the revision that the reader knows, and never changes acme
    other = Store(tmp_path / "copy.db", PEPPER)
    for number in range(3):
        publish(other, harbor=[f"Person {number}"])
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"guard.db{suffix}").unlink(missing_ok=True)
        if (tmp_path / f"copy.db{suffix}").exists():
            (tmp_path / f"copy.db{suffix}").rename(tmp_path / f"guard.db{suffix}")
    snapshot = reader.snapshot()
    assert [target.name for target in snapshot.tenants["acme"].targets] == ["Hina Ameen"]
    assert snapshot == Store(tmp_path / "guard.db", PEPPER).snapshot()


def test_a_reader_that_is_far_behind_reads_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions, "KEPT_MARKS", 3)
    store = make_store(tmp_path)
    publish(store, acme=["Hina Ameen"])
    reader = Store(tmp_path / "guard.db", PEPPER)
    reader.snapshot()
    for number in range(6):
        publish(store, harbor=[f"Person {number}"])
    with sqlite3.connect(tmp_path / "guard.db") as connection:
        assert connection.execute("SELECT count(*) FROM guard_revision_mark").fetchone() == (3,)
    assert reader.snapshot() == Store(tmp_path / "guard.db", PEPPER).snapshot()


def test_a_tenant_without_its_list_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    publish(make_store(tmp_path), acme=["Hina Ameen"], harbor=["Jaime Vasquez"])
    with sqlite3.connect(tmp_path / "guard.db") as connection:
        connection.execute("DELETE FROM guard_policy WHERE tenant_index = 1")
        connection.execute("DELETE FROM guard_forget_list WHERE tenant_index = 1")
    reader = Store(tmp_path / "guard.db", PEPPER)
    with pytest.raises(StoreError, match="acme is missing"):
        reader.snapshot()
    assert reader.tenant("harbor") is not None


def test_one_tenant_is_read_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    publish(store, acme=["Hina Ameen"], harbor=[])
    assert store.tenant("acme") == store.snapshot().tenants["acme"]
    store.delete_tenant("acme")
    assert store.tenant("acme") is None and store.tenant("nobody") is None


def test_tenants_with_equal_policies_share_them(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    publish(store, acme=["Hina Ameen"], harbor=["Jaime Vasquez"])
    tenants = Store(tmp_path / "guard.db", PEPPER).snapshot().tenants
    assert tenants["acme"].policy is tenants["harbor"].policy


def test_a_policy_stored_under_a_wider_bound_stays_readable(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    old = Policy.model_validate({"max_choices": 8 * MAX_CHOICES}, context=STORED)
    store.publish(TenantFile(tenants=(TenantSpec(name="acme", policy=old),)))
    read = Store(tmp_path / "guard.db", PEPPER).snapshot().tenants["acme"].policy
    assert read.max_choices == 8 * MAX_CHOICES
