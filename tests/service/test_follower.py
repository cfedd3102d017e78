"""Snapshots are taken over one after the other, none is missed; what fails closes one tenant only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from guard.classifiers.detector import Detector
from guard.classifiers.vocabulary import Vocabulary
from guard.metrics import Metrics
from guard.policy import Policy, Snapshot, Target, Tenant, TenantFile, TenantSpec, tenant_of
from guard.service.follower import SnapshotFollower, wanted_packs
from guard.service.residency.compiled_lists import CompiledLists
from guard.service.residency.engine_loads import EngineLoads
from guard.service.residency.hold import Residency
from guard.service.residency.list_files import ListFiles
from guard.service.residency.residents import Capacity, Residents
from guard.service.snapshot import SnapshotWatcher
from guard.service.store.store import Store


def spec(name: str, forbid: str, **policy: Any) -> TenantSpec:
    return TenantSpec(
        name=name, policy=Policy.model_validate(policy), targets=(Target(name=f"{name} x", forbid=(forbid,)),)
    )


class Server:
    """A real store, watcher, detector and compiler; the engine takes every call but those for a list in `broken`."""

    def __init__(self, folder: Path, tokenizer: Any, warm_tenants: int = 64) -> None:
        self.store = Store(folder / "guard.db", b"p" * 32)
        self.store.migrate()
        self.watcher = SnapshotWatcher(self.store, interval_s=0.01)
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        self.calls: list[tuple[str, str]] = []
        self.broken: Callable[[str], bool] = lambda digest: False
        self.lists = CompiledLists(ListFiles(folder / "lists", Vocabulary.from_tokenizer(tokenizer)), 1 << 24, 30.0)
        self.residency = Residency(
            Residents(
                EngineLoads("constraint", self.call, self.lists.path_of), Capacity(8), 30.0, metrics,
                size_of=self.lists.size_of, on_failure=self.lists.discard,
            ),
            Residents(EngineLoads("edit", self.call, self.lists.path_of), Capacity(0), 30.0, metrics),
        )
        self.detector = Detector(None)
        self.follower = SnapshotFollower(
            self.watcher, self.lists, self.residency, self.detector, metrics, warm_tenants
        )

    async def call(self, method: str, arguments: tuple[Any, ...]) -> list[str]:
        self.calls.append((method, arguments[-1]))
        if method == "guard_commit" and self.broken(arguments[-1]):
            raise RuntimeError("worker died")
        await asyncio.sleep(0)
        return ["ready"]

    def publish(self, *specs: TenantSpec) -> None:
        self.store.publish(TenantFile(tenants=specs))

    def tenant(self, name: str) -> Tenant:
        return self.watcher.current.tenants[name]

    async def digest(self, name: str) -> str:
        compiled = await self.lists.of(self.tenant(name))
        assert compiled is not None
        return compiled.digest

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@pytest_asyncio.fixture
async def server(tmp_path: Path, tokenizer: Any) -> AsyncIterator[Server]:
    made = Server(tmp_path, tokenizer)
    made.publish(spec("acme", "Granite Glossary"), spec("bolt", "Shale Stories"), TenantSpec(name="open"))
    made.watcher.start()
    yield made
    made.watcher.stop()
    made.detector.close()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_start_makes_the_first_tenants_ready(server: Server) -> None:
    ahead = await server.follower.start()
    assert [tenant.name for tenant in ahead] == ["acme", "bolt"]
    assert server.residency.lists.resident == 2


async def test_a_list_that_no_answer_is_compared_with_is_not_compiled(server: Server) -> None:
    await asyncio.to_thread(server.publish, spec("wall", "Basalt Ballads", action="monitor"))
    await eventually(lambda: "wall" in server.watcher.current.tenants)
    ahead = await server.follower.start()
    assert {tenant.name for tenant in ahead} == {"acme", "bolt", "wall"}
    assert server.lists.tenants_seen() == {"acme", "bolt"} and server.residency.lists.resident == 2


async def test_an_apply_during_the_start_is_taken_over_and_not_compiled_again_and_again(server: Server) -> None:
    taking = asyncio.create_task(server.follower.start())
    await asyncio.sleep(0)
    await asyncio.to_thread(server.publish, spec("acme", "Basalt Ballads"))
    await taking
    # the start goes on with other work before the follower runs: nothing may be lost in between
    await eventually(lambda: server.tenant("acme").targets[0].forbid == ("Basalt Ballads",))
    running = asyncio.create_task(server.follower.run())
    digest = await server.digest("acme")
    await eventually(lambda: ("guard_commit", digest) in server.calls)
    staged = [digest for method, digest in server.calls if method == "guard_stage"]
    assert len(staged) == len(set(staged)) == 3
    running.cancel()


async def test_a_list_that_will_not_load_closes_its_tenant_only_and_is_counted(server: Server) -> None:
    bad = await server.digest("acme")
    server.broken = lambda digest: digest == bad
    await server.follower.start()
    assert server.lists.failures == {server.tenant("acme").index: "RuntimeError"}
    assert server.residency.lists.resident == 1
    assert server.value("guard_reloads_total", result="failure") == 1


async def test_a_failing_store_keeps_what_is_served_and_the_follower_alive(server: Server, tmp_path: Path) -> None:
    await server.follower.start()
    running = asyncio.create_task(server.follower.run())
    database = tmp_path / "guard.db"
    content = database.read_bytes()
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(b"garbage" * 1000)
    await eventually(lambda: not server.watcher.healthy)
    assert server.residency.lists.resident == 2 and not running.done()
    database.write_bytes(content)
    await eventually(lambda: server.watcher.healthy)
    await asyncio.to_thread(server.publish, spec("bolt", "Basalt Ballads"))
    await eventually(lambda: server.tenant("bolt").targets[0].forbid == ("Basalt Ballads",))
    await eventually(lambda: server.residency.lists.resident == 2 and len(server.lists._entries) == 2)
    running.cancel()


async def test_a_fault_in_one_take_over_does_not_end_the_next(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.follower.start()
    running = asyncio.create_task(server.follower.run())
    real, faults = server.lists.serve_only, [ValueError("once")]

    def failing(tenants: Any) -> None:
        if faults:
            raise faults.pop()
        real(tenants)

    monkeypatch.setattr(server.lists, "serve_only", failing)
    await asyncio.to_thread(server.publish, spec("acme", "One"))
    await eventually(lambda: not faults)
    await asyncio.to_thread(server.publish, spec("acme", "Two"))
    await eventually(lambda: any(entry.digest for entry in server.lists._entries.values()))
    assert not running.done() and server.value("guard_reloads_total", result="failure") == 1
    running.cancel()


async def test_deleted_tenants_leave_nothing_behind(server: Server) -> None:
    await server.follower.start()
    running = asyncio.create_task(server.follower.run())
    await asyncio.to_thread(server.store.delete_tenant, "acme")
    await eventually(lambda: server.residency.lists.resident == 1)
    assert {name for name, _ in server.lists._entries} == {"bolt"}
    assert len(server.detector._lists) == 1
    running.cancel()


async def test_only_so_many_tenants_are_made_ready_ahead(tmp_path: Path, tokenizer: Any) -> None:
    made = Server(tmp_path, tokenizer, warm_tenants=2)
    made.publish(*(spec(f"tenant-{number:02}", f"Forbidden Words {number}") for number in range(30)))
    made.watcher.start()
    try:
        ahead = await made.follower.start()
        assert [tenant.name for tenant in ahead] == ["tenant-00", "tenant-01"]
        assert made.residency.lists.resident == 2 and len(made.lists._entries) == 2
        # of the changed tenants those come first that are in use
        await made.lists.of(made.tenant("tenant-20"))
        running = asyncio.create_task(made.follower.run())
        await asyncio.to_thread(
            made.publish, *(spec(f"tenant-{number:02}", f"Other Words {number}") for number in range(10, 30))
        )
        await eventually(lambda: made.tenant("tenant-20").targets[0].forbid == ("Other Words 20",))
        await eventually(lambda: made.lists.tenants_seen() == {"tenant-00", "tenant-01", "tenant-20", "tenant-10"})
        running.cancel()
    finally:
        made.watcher.stop()
        made.detector.close()


def test_packs_of_every_request_are_loaded_first() -> None:
    edits = [{"pack": "b" * 64}, {"pack": "c" * 64, "when": "always"}]
    tenant = tenant_of(spec("acme", "x", edits=edits), 1)
    assert wanted_packs(Snapshot(1, {"acme": tenant}, {})) == ["c" * 64, "b" * 64]
