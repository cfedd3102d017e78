"""Publishing many tenants at once: indices, versions and audit events are those of one after the other."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import event

from guard.errors import StoreError, TenantFileError
from guard.policy import Target, TenantFile, TenantSpec
from guard.service.store.store import Store

MANY = 1100


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "guard.db", b"p" * 32)
    made.migrate()
    return made


def many(count: int = MANY, **lists: str) -> TenantFile:
    """Tenants `t0`, `t1`, … with a target each; `lists` gives some of them another one."""
    names = (f"t{number}" for number in range(count))
    return TenantFile(tenants=tuple(TenantSpec(name=n, targets=(Target(name=lists.get(n, f"Ms {n}")),)) for n in names))


def test_many_tenants_get_an_index_a_list_and_an_event_each(store: Store) -> None:
    changes = store.publish(many(), actor="cli:ada")
    assert [change.index for change in changes] == list(range(1, MANY + 1))
    assert {change.kind for change in changes} == {"created"}
    tenants = store.snapshot().tenants
    assert all(tenants[f"t{number}"].targets[0].name == f"Ms t{number}" for number in range(MANY))
    events = store.audit_events(limit=2 * MANY)
    assert [event.tenant for event in reversed(events)] == [f"t{number}" for number in range(MANY)]
    assert events[0].detail["policy_version"] == tenants[f"t{MANY - 1}"].policy_version


def test_a_few_statements_publish_many_tenants(store: Store) -> None:
    executed: list[str] = []

    @event.listens_for(store._engine, "before_cursor_execute")
    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        executed.append(statement)

    store.publish(many())
    assert len(executed) < 60
    executed.clear()
    revision = store.revision()
    store.publish(many())
    assert not [statement for statement in executed if statement.startswith(("INSERT", "UPDATE", "DELETE"))]
    assert store.revision() == revision


def test_only_what_differs_is_written(store: Store) -> None:
    store.publish(many(4))
    store.delete_tenant("t2")
    changes = store.publish(many(5, t1="Somebody Else"), actor="cli:ada")
    assert [change.kind for change in changes] == ["unchanged", "updated", "created", "unchanged", "created"]
    assert [change.index for change in changes] == [1, 2, 3, 4, 5]
    assert [(event.action, event.tenant) for event in store.audit_events(limit=3)] == [
        ("tenant.create", "t4"), ("tenant.create", "t2"), ("tenant.update", "t1"),
    ]


def test_a_failure_late_in_a_large_file_undoes_all_of_it(store: Store, tmp_path: Path) -> None:
    before = store.snapshot()
    with sqlite3.connect(tmp_path / "guard.db") as connection:
        connection.execute(
            f"CREATE TRIGGER stop BEFORE INSERT ON guard_policy WHEN NEW.tenant_index = {MANY - 5} "
            "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    with pytest.raises(StoreError, match="disk full"):
        store.publish(many())
    assert store.snapshot() == before
    assert store.audit_events() == ()


def test_a_tenant_that_is_there_twice_is_refused(store: Store) -> None:
    file = many(3)
    with pytest.raises(TenantFileError, match="twice") as caught:
        store.publish(TenantFile(tenants=(*file.tenants, file.tenants[1])))
    assert caught.value.field == "tenants[3].name"
    assert store.snapshot().tenants == {}


def test_keys_of_many_tenants_are_made_together_or_not_at_all(store: Store) -> None:
    store.publish(many())
    names = [f"t{number}" for number in range(MANY)]
    keys = store.create_keys(names, actor="cli:ada")
    assert len({key.text for key in keys}) == MANY
    assert [record.tenant for record in store.list_keys("t7")] == ["t7"]
    assert {event.action for event in store.audit_events(limit=MANY)} == {"key.create"}
    with pytest.raises(StoreError, match="no tenant nobody"):
        store.create_keys(["t1", "nobody"])
    assert len(store.list_keys()) == MANY
