"""The watcher shows changes within a second and keeps the last good snapshot whatever happens to the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guard.errors import StoreError
from guard.policy import Snapshot, Target, TenantFile, TenantSpec
from guard.service.snapshot import SnapshotWatcher
from guard.service.store.store import Store


def publish(store: Store, *targets: str) -> None:
    spec = TenantSpec(name="acme", targets=tuple(Target(name=target) for target in targets))
    store.publish(TenantFile(tenants=(spec,)))


def target_names(snapshot: Snapshot) -> list[str]:
    return [target.name for target in snapshot.tenants["acme"].targets]


def eventually(condition: Callable[[], bool], within_s: float) -> bool:
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "guard.db", b"p" * 32)
    store.migrate()
    publish(store, "Hina Ameen")
    return store


@pytest.fixture
def watcher(store: Store) -> Iterator[SnapshotWatcher]:
    watcher = SnapshotWatcher(store)
    watcher.start()
    yield watcher
    watcher.stop()


def damage(path: Path, content: bytes | None) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def test_a_change_is_visible_within_a_second_and_announced(store: Store, watcher: SnapshotWatcher) -> None:
    announced = threading.Event()
    watcher.on_change(lambda snapshot: announced.set())
    publish(store, "Xin Lee Williams")
    assert announced.wait(1.0)
    assert target_names(watcher.current) == ["Xin Lee Williams"]
    assert watcher.healthy
    assert watcher.state().revision == store.revision()


def test_a_revoked_key_is_gone_within_a_second(store: Store, watcher: SnapshotWatcher) -> None:
    key = store.create_key("acme")
    assert eventually(lambda: len(watcher.current.keys) == 1, 1.0)
    store.revoke_key(key.id)
    assert eventually(lambda: not watcher.current.keys, 1.0)


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 8192, b"SQLite format 3\x00" + b"\xff" * 8192])
def test_a_damaged_store_keeps_the_last_good_snapshot_and_recovers(
    store: Store, tmp_path: Path, content: bytes | None
) -> None:
    watcher = SnapshotWatcher(store, interval_s=3600.0)
    good = watcher.start()
    original = (tmp_path / "guard.db").read_bytes()
    damage(tmp_path / "guard.db", content)
    assert not watcher.refresh()
    assert watcher.current is good
    assert not watcher.healthy
    assert watcher.state().failures == 1
    assert watcher.state().error
    damage(tmp_path / "guard.db", original)
    assert watcher.refresh()
    assert watcher.healthy
    watcher.stop()


def test_the_polling_thread_survives_a_damaged_store(store: Store, watcher: SnapshotWatcher, tmp_path: Path) -> None:
    good = watcher.current
    original = (tmp_path / "guard.db").read_bytes()
    damage(tmp_path / "guard.db", b"garbage" * 1000)
    assert eventually(lambda: not watcher.healthy, 2.0)
    assert watcher.current is good
    damage(tmp_path / "guard.db", original)
    assert eventually(lambda: watcher.healthy, 2.0)


def test_a_store_that_went_back_in_time_is_not_taken(store: Store, tmp_path: Path) -> None:
    for name in ("One Person", "Another Person"):
        publish(store, name)
    watcher = SnapshotWatcher(store, interval_s=3600.0)
    good = watcher.start()
    damage(tmp_path / "guard.db", None)
    store.migrate()
    assert not watcher.refresh()
    assert watcher.current is good
    assert "went back" in watcher.state().error
    watcher.stop()


def test_a_failing_listener_does_not_stop_the_others_or_the_swap(store: Store) -> None:
    watcher = SnapshotWatcher(store, interval_s=3600.0)
    watcher.start()
    seen: list[int] = []

    def fail(snapshot: Snapshot) -> None:
        raise ValueError("listener")

    watcher.on_change(fail)
    watcher.on_change(lambda snapshot: seen.append(snapshot.revision))
    publish(store, "Xin Lee Williams")
    assert watcher.refresh()
    assert seen == [watcher.current.revision]
    assert watcher.healthy
    watcher.stop()


def test_a_watcher_without_a_store_does_not_start(tmp_path: Path) -> None:
    watcher = SnapshotWatcher(Store(tmp_path / "none.db", b"p" * 32))
    with pytest.raises(StoreError):
        watcher.start()
    with pytest.raises(StoreError):
        _ = watcher.current
    assert not watcher.healthy


def test_readers_never_see_a_torn_snapshot_during_many_reloads(store: Store) -> None:
    watcher = SnapshotWatcher(store, interval_s=0.001)
    watcher.start()
    for number in range(40):
        publish(store, *(f"Person {number}" for _ in range(3)))
        assert len(set(target_names(watcher.current))) == 1
    watcher.stop()
