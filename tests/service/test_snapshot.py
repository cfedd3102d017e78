"""The watcher shows changes within a second and keeps the last good snapshot whatever happens to the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guard.errors import StoreError
from guard.policy import Snapshot, Target, TenantFile, TenantSpec
from guard.service.snapshot import SnapshotWatcher, difference
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
    def publish_both(number: int) -> None:
        # one change of two tenants: whoever reads must see the same number in both
        store.publish(TenantFile(tenants=tuple(
            TenantSpec(name=name, targets=(Target(name=f"Person {number}"),)) for name in ("acme", "harbor")
        )))

    publish_both(0)
    watcher = SnapshotWatcher(store, interval_s=0.001)
    watcher.start()
    seen: dict[int, set[str]] = {}
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            snapshot = watcher.current
            names = {tenant.targets[0].name for tenant in snapshot.tenants.values()}
            seen.setdefault(snapshot.revision, set()).update(names)
            time.sleep(0)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 41):
        publish_both(number)
        assert eventually(lambda: watcher.current.revision == store.revision(), 5.0)
    done.set()
    reader.join()
    watcher.stop()
    assert len(seen) > 10
    # the first revision that was read is that of Person 0
    first = min(seen)
    assert seen == {revision: {f"Person {revision - first}"} for revision in seen}


def test_an_outage_is_counted_once_however_long_it_lasts(store: Store, tmp_path: Path) -> None:
    watcher = SnapshotWatcher(store, interval_s=3600.0)
    watcher.start()
    original = (tmp_path / "guard.db").read_bytes()
    damage(tmp_path / "guard.db", None)
    assert [watcher.refresh() for _ in range(5)] == [False] * 5
    damage(tmp_path / "guard.db", b"not a database" * 1000)
    assert not watcher.refresh()
    assert watcher.state().failures == 1
    damage(tmp_path / "guard.db", original)
    assert watcher.refresh()
    damage(tmp_path / "guard.db", None)
    assert not watcher.refresh()
    assert watcher.state().failures == 2
    watcher.stop()


def test_a_listener_from_before_the_start_is_told_of_the_first_snapshot(store: Store) -> None:
    watcher = SnapshotWatcher(store, interval_s=3600.0)
    seen: list[Snapshot] = []
    watcher.on_change(seen.append)
    assert seen == []
    first = watcher.start()
    assert seen == [first]
    watcher.stop()


def test_a_subscriber_gets_the_current_snapshot_and_every_later_one(store: Store) -> None:
    watcher = SnapshotWatcher(store, interval_s=3600.0)
    seen: list[Snapshot] = []
    with pytest.raises(StoreError):
        watcher.subscribe(seen.append)
    watcher.start()
    assert seen == []
    current = watcher.subscribe(seen.append)
    assert current is watcher.current
    assert seen == []
    publish(store, "Xin Lee Williams")
    watcher.refresh()
    assert seen == [watcher.current]
    watcher.stop()


def test_no_snapshot_is_missed_between_subscribing_and_a_change(store: Store) -> None:
    watcher = SnapshotWatcher(store, interval_s=0.001)
    watcher.start()
    stories: list[list[int]] = []

    def follow(story: list[int]) -> None:
        # at whatever point of a reload this falls: what is returned and what is announced leave nothing out
        story.append(watcher.subscribe(lambda snapshot: story.append(snapshot.revision)).revision)

    for number in range(30):
        publish(store, f"Person {number}")
        stories.append([])
        follow(stories[-1])
    assert eventually(lambda: all(story[-1] == store.revision() for story in map(sorted, stories)), 5.0)
    watcher.stop()
    full = sorted(stories[0])
    for story in stories:
        assert sorted(story) == [revision for revision in full if revision >= min(story)]


def test_the_difference_of_two_snapshots_names_what_changed_and_what_is_gone(store: Store) -> None:
    store.publish(TenantFile(tenants=(TenantSpec(name="harbor"), TenantSpec(name="open"))))
    before = store.snapshot()
    assert difference(None, before) == (tuple(before.tenants.values()), ())
    publish(store, "Xin Lee Williams")
    store.delete_tenant("open")
    store.create_key("harbor")
    after = store.snapshot()
    assert difference(before, after) == ((after.tenants["acme"],), (before.tenants["open"],))
    assert difference(after, store.snapshot()) == ((), ())
