"""The store on PostgreSQL does what it does on SQLite. Needs psycopg and a database:

    GUARD_TEST_DATABASE_URL=postgresql+psycopg://user:password@host/name

Everything happens in a schema of its own, which is dropped at the end.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, make_url, text

from guard.errors import StoreError
from guard.policy import Target, TenantFile, TenantSpec
from guard.service.snapshot import SnapshotWatcher
from guard.service.store.keys import hash_key
from guard.service.store.store import Store

URL = os.environ.get("GUARD_TEST_DATABASE_URL", "")
PEPPER = b"p" * 32

pytestmark = pytest.mark.skipif(not URL, reason="GUARD_TEST_DATABASE_URL is not set")


@pytest.fixture
def url() -> Iterator[str]:
    """URL of an empty schema."""
    pytest.importorskip("psycopg")
    schema = f"guard_test_{secrets.token_hex(4)}"
    admin = create_engine(URL)
    with admin.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    own = make_url(URL).update_query_dict({"options": f"-csearch_path={schema}"})
    yield own.render_as_string(hide_password=False)
    with admin.begin() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    admin.dispose()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url, PEPPER)
    made.migrate()
    yield made
    made.close()


def tenants(count: int, **lists: str) -> TenantFile:
    names = [f"t{number}" for number in range(count)]
    return TenantFile(tenants=tuple(TenantSpec(name=n, targets=(Target(name=lists.get(n, f"Ms {n}")),)) for n in names))


def test_tenants_and_keys_are_published_changed_and_deleted(store: Store, url: str) -> None:
    reader = Store(url, PEPPER)
    assert [change.index for change in store.publish(tenants(1200), actor="cli:ada")] == list(range(1, 1201))
    key, other = store.create_keys(["t3", "t4"])
    first = reader.snapshot()
    assert first.keys == {hash_key(key.text, PEPPER): "t3", hash_key(other.text, PEPPER): "t4"}
    assert [change.kind for change in store.publish(tenants(4, t1="Somebody Else"))].count("updated") == 1
    store.delete_tenant("t2")
    store.revoke_key(key.id)
    second = reader.snapshot()
    assert second.tenants["t1"].targets[0].name == "Somebody Else" and "t2" not in second.tenants
    assert list(second.keys.values()) == ["t4"]
    assert second.tenants["t5"] is first.tenants["t5"]
    assert second == Store(url, PEPPER).snapshot()
    assert [event.action for event in store.audit_events(3)] == ["key.revoke", "tenant.delete", "tenant.update"]
    store.migrate()
    assert reader.snapshot() is second
    reader.close()


def test_writers_that_collide_lose_nothing_that_was_accepted(store: Store) -> None:
    before = store.revision()
    accepted: list[str] = []

    def publish(number: int) -> None:
        spec = TenantSpec(name=f"tenant-{number}")
        for _ in range(100):
            try:
                store.publish(TenantFile(tenants=(spec,)))
            except StoreError:
                continue
            accepted.append(spec.name)
            return

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    snapshot = store.snapshot()
    assert set(snapshot.tenants) == set(accepted)
    assert snapshot.revision == before + len(accepted)
    assert len({tenant.index for tenant in snapshot.tenants.values()}) == len(accepted) > 0


def test_a_watcher_sees_a_change_of_another_process(store: Store, url: str) -> None:
    store.publish(tenants(2))
    watcher = SnapshotWatcher(Store(url, PEPPER), interval_s=3600.0)
    watcher.start()
    store.publish(tenants(2, t0="Somebody Else"))
    assert watcher.refresh()
    assert watcher.current.tenants["t0"].targets[0].name == "Somebody Else"
    watcher.stop()


def test_the_location_shows_no_password(store: Store) -> None:
    password = make_url(URL).password
    assert not password or password not in store.location
