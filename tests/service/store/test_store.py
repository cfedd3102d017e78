"""The store publishes all or nothing, keeps versions immutable and gives nothing away."""

from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from guard.errors import ConfigurationError, StoreError
from guard.policy import Policy, Target, TenantFile, TenantSpec
from guard.service.store.keys import hash_key
from guard.service.store.store import Store

PEPPER = b"p" * 32


def make_store(folder: Path) -> Store:
    store = Store(folder / "guard.db", PEPPER)
    store.migrate()
    return store


def tenant_file(**lists: tuple[str, ...]) -> TenantFile:
    specs = tuple(
        TenantSpec(name=name, targets=tuple(Target(name=target) for target in targets))
        for name, targets in lists.items()
    )
    return TenantFile(tenants=specs)


def test_published_tenants_are_read_back_whole(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    spec = TenantSpec(
        name="acme", policy=Policy(action="refuse"), benign=("What is 2 + 2?",),
        targets=(Target(name="Hina Ameen", aliases=("H. Ameen",), examples=("Who?",), answers=("A.",), forbid=()),),
    )
    (change,) = store.publish(TenantFile(tenants=(spec,)))
    tenant = store.snapshot().tenants["acme"]
    assert (change.kind, change.targets, change.index) == ("created", 1, tenant.index)
    assert (tenant.policy, tenant.targets, tenant.benign) == (spec.policy, spec.targets, spec.benign)
    assert tenant.policy_version == change.policy_version


def test_revision_grows_with_changes_and_only_with_changes(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    before = store.revision()
    store.publish(tenant_file(acme=("Hina Ameen",)))
    after = store.revision()
    (again,) = store.publish(tenant_file(acme=("Hina Ameen",)))
    assert after > before
    assert again.kind == "unchanged"
    assert store.revision() == after


def test_other_tenants_stay_when_one_is_published(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.publish(tenant_file(acme=("Hina Ameen",), harbor=("Jaime Vasquez",)))
    before = store.snapshot()
    (change,) = store.publish(tenant_file(acme=("Xin Lee Williams",)))
    after = store.snapshot()
    assert change.kind == "updated"
    assert after.tenants["harbor"] is before.tenants["harbor"]
    assert after.tenants["acme"].index == before.tenants["acme"].index
    assert [target.name for target in after.tenants["acme"].targets] == ["Xin Lee Williams"]


def test_a_failing_publication_changes_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.publish(tenant_file(acme=("Hina Ameen",)))
    before = store.snapshot()
    with sqlite3.connect(tmp_path / "guard.db") as connection:
        connection.execute(
            "CREATE TRIGGER stop BEFORE INSERT ON guard_tenant WHEN NEW.name = 'zebra' "
            "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    with pytest.raises(StoreError):
        store.publish(tenant_file(acme=("Somebody Else",), zebra=("Jaime Vasquez",)))
    assert store.snapshot() == before


def test_a_new_and_an_old_version_are_both_kept(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.publish(tenant_file(acme=("Hina Ameen",)))
    first = store.snapshot().tenants["acme"]
    store.publish(tenant_file(acme=("Xin Lee Williams",)))
    store.publish(tenant_file(acme=("Hina Ameen",)))
    assert store.snapshot().tenants["acme"] == first
    with sqlite3.connect(tmp_path / "guard.db") as connection:
        assert connection.execute("SELECT count(*) FROM guard_forget_list").fetchone() == (2,)


def test_an_altered_list_is_noticed(tmp_path: Path) -> None:
    make_store(tmp_path).publish(tenant_file(acme=("Hina Ameen",)))
    with sqlite3.connect(tmp_path / "guard.db") as connection:
        connection.execute("UPDATE guard_forget_list SET content = replace(content, 'Hina', 'Hana')")
    with pytest.raises(StoreError, match="does not match its version"):
        Store(tmp_path / "guard.db", PEPPER).snapshot()


def test_a_key_is_stored_as_a_hash_and_listed_without_secret(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.publish(tenant_file(acme=()))
    key = store.create_key("acme", label="ci")
    assert store.snapshot().keys == {hash_key(key.text, PEPPER): "acme"}
    (record,) = store.list_keys("acme")
    assert (record.id, record.label, record.revoked_s) == (key.id, "ci", None)
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert key.text.split("_")[2].encode() not in files


def test_a_revoked_key_leaves_the_snapshot(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.publish(tenant_file(acme=()))
    key = store.create_key("acme")
    store.revoke_key(key.id)
    assert store.snapshot().keys == {}
    with pytest.raises(StoreError, match="no live key"):
        store.revoke_key(key.id)


def test_a_deleted_tenant_loses_its_keys_for_good_and_keeps_its_index(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.publish(tenant_file(acme=(), harbor=()))
    index = store.snapshot().tenants["harbor"].index
    store.create_key("harbor")
    store.delete_tenant("harbor")
    assert "harbor" not in store.snapshot().tenants
    store.publish(tenant_file(later=()))
    store.publish(tenant_file(harbor=()))
    snapshot = store.snapshot()
    assert snapshot.tenants["harbor"].index == index
    assert snapshot.keys == {}
    assert len({tenant.index for tenant in snapshot.tenants.values()}) == 3


def test_unknown_tenants_are_named(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with pytest.raises(StoreError, match="no tenant nobody"):
        store.create_key("nobody")


def test_audit_events_hold_no_term_and_no_secret(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.publish(tenant_file(acme=("Hina Ameen",)), actor="cli:ada")
    key = store.create_key("acme", actor="cli:ada")
    events = store.audit_events()
    assert [event.action for event in events] == ["key.create", "tenant.create"]
    assert {event.actor for event in events} == {"cli:ada"}
    assert "Hina" not in repr(events)
    assert key.text not in repr(events)


def test_a_missing_or_empty_database_is_an_error_and_stays_as_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "none.db", PEPPER)
    with pytest.raises(StoreError):
        store.snapshot()
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "none.db").touch()
    with pytest.raises(StoreError):
        store.snapshot()


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "guard.db").write_bytes(b"not a database at all" * 400)
    with pytest.raises(StoreError):
        make_store(tmp_path)


def test_a_store_of_a_later_schema_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with sqlite3.connect(tmp_path / "guard.db") as connection:
        connection.execute("UPDATE guard_state SET schema_version = 99")
    with pytest.raises(StoreError, match="schema 99"):
        store.migrate()


def test_the_database_is_private_and_in_wal_mode(tmp_path: Path) -> None:
    make_store(tmp_path / "home")
    assert stat.S_IMODE((tmp_path / "home" / "guard.db").stat().st_mode) == 0o600
    with sqlite3.connect(tmp_path / "home" / "guard.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_readers_go_on_while_a_writer_holds_the_lock(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.publish(tenant_file(acme=("Hina Ameen",)))
    writer = sqlite3.connect(tmp_path / "guard.db", isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    assert "acme" in store.snapshot().tenants
    with pytest.raises(StoreError, match="locked"):
        store.publish(tenant_file(acme=()))
    writer.execute("ROLLBACK")
    writer.close()
    assert store.snapshot().tenants["acme"].targets


def test_concurrent_writers_lose_no_change(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    before = store.revision()
    names = [f"tenant-{number}" for number in range(8)]
    threads = [threading.Thread(target=store.publish, args=(tenant_file(**{name: ()}),)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    snapshot = store.snapshot()
    assert set(snapshot.tenants) == set(names)
    assert len({tenant.index for tenant in snapshot.tenants.values()}) == len(names)
    assert snapshot.revision == before + len(names)


def make_old_store(folder: Path) -> Store:
    """A store as version 1 left it: no tables of packs, policies that say nothing of edits."""
    store = make_store(folder)
    store.publish(tenant_file(acme=("Hina Ameen",)))
    store.create_key("acme")
    with sqlite3.connect(folder / "guard.db") as connection:
        connection.execute("DROP TABLE guard_pack")
        connection.execute("DROP TABLE guard_engine")
        connection.execute("UPDATE guard_state SET schema_version = 1")
        connection.execute("UPDATE guard_policy SET content = json_remove(content, '$.edits')")
    return Store(folder / "guard.db", PEPPER)


def schema_version(folder: Path) -> int:
    with sqlite3.connect(folder / "guard.db") as connection:
        return int(connection.execute("SELECT schema_version FROM guard_state").fetchone()[0])


def test_a_store_of_version_1_is_read_as_it_is(tmp_path: Path) -> None:
    store = make_old_store(tmp_path)
    snapshot = store.snapshot()
    assert snapshot.tenants["acme"].targets[0].name == "Hina Ameen" and len(snapshot.keys) == 1
    assert (store.packs(), store.engine_record(), store.pack_needed("0" * 64)) == ((), None, False)
    assert schema_version(tmp_path) == 1


@pytest.mark.parametrize("write", ["migrate", "publish", "revoke"])
def test_the_first_write_brings_a_store_of_version_1_up_to_date(tmp_path: Path, write: str) -> None:
    store = make_old_store(tmp_path)
    before = store.snapshot()
    if write == "migrate":
        store.migrate()
    elif write == "publish":
        store.publish(tenant_file(harbor=()))
    else:
        store.revoke_key(store.list_keys()[0].id)
    assert schema_version(tmp_path) == 3
    assert store.snapshot().tenants["acme"] == before.tenants["acme"]
    assert store.packs() == ()


@pytest.mark.parametrize("url", ["mysql://host/name", "sqlite://", "nonsense://x", "postgresql+nodriver://host/x"])
def test_a_database_that_cannot_work_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Store(url, PEPPER)


def test_a_password_is_not_shown() -> None:
    pytest.importorskip("psycopg")
    assert "secret" not in Store("postgresql+psycopg://ada:secret@host/name", PEPPER).location
