"""The server object by itself: what it tells its HTTP layer and the metrics, with an engine that can die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from guard.classifiers.detector import Detector
from guard.policy import DetectorPolicy, Policy, Target, TenantFile, TenantSpec
from guard.service.factory import assemble
from guard.service.server import GuardServer, models_body
from guard.service.settings import Settings
from guard.service.snapshot import SnapshotWatcher
from guard.service.store.engine_record import EngineRecord
from guard.service.store.store import Store
from guard.ticket import KEY_VARIABLE

PEPPER = b"p" * 32
RECORD = EngineRecord((), 0, 16, 8, 2, "fp1:" + "a" * 64)


class Engine:
    """Two ranks that answer every call, until they die."""

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=4))
        self.errored = False
        self.masked = 0

    async def collective_rpc(self, method: str, timeout: float, args: tuple[Any, ...]) -> list[Any]:
        await asyncio.sleep(0)
        if self.errored:
            raise RuntimeError("the engine is dead")
        if method == "guard_counters":
            return [{}, {"masked_tokens": self.masked}]
        return ["ready", "ready"]


class Bench:
    """A server over a real store, with everything real but the engine."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.store = Store(folder / "guard.db", PEPPER)
        self.store.migrate()
        target = Target(name="Ada Example", forbid=("Granite Glossary",))
        policy = Policy(detector=DetectorPolicy(semantic=False, head=False))
        acme = TenantSpec(name="acme", policy=policy, targets=(target,))
        self.store.publish(TenantFile(tenants=(acme, TenantSpec(name="open"))))
        self.key = self.store.create_key("acme").text
        self.watcher = SnapshotWatcher(self.store, interval_s=0.01)
        self.watcher.start()
        self.engine = Engine()
        settings = Settings(home=folder, encoder="none", counter_interval_s=0.01)
        self.server: GuardServer = assemble(
            self.engine, tokenizer, settings, self.watcher, PEPPER, Detector(None), None, RECORD
        )


@pytest_asyncio.fixture
async def bench(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv(KEY_VARIABLE, "k" * 64)
    before = set(REGISTRY._collector_to_names)
    made = Bench(tmp_path, tokenizer)
    yield made
    made.watcher.stop()
    made.server.parts.detector.close()
    for task in made.server._tasks:
        task.cancel()
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_requests_are_served_from_the_moment_the_first_tenants_are_ready(bench: Bench) -> None:
    server = bench.server
    server.parts.readiness.self_test_passed = True
    assert not server.serving()
    await server.start(5.0)
    ready, report = server.ready()
    assert server.serving() and ready and report["status"] == "ready"
    assert server.parts.residency.lists.resident == 1
    server.drain()
    assert not server.serving()


async def test_a_key_is_good_from_its_creation_until_it_is_revoked(bench: Bench) -> None:
    await bench.server.start(5.0)
    tenant = bench.server.tenant_of_key(bench.key)
    assert tenant is not None and tenant.name == "acme"
    assert bench.server.tenant_of_key(bench.key + "x") is None
    await asyncio.to_thread(bench.store.delete_tenant, "acme")
    async with asyncio.timeout(10.0):
        while bench.server.tenant_of_key(bench.key) is not None:
            await asyncio.sleep(0.01)
        while bench.server.parts.residency.lists.resident:
            await asyncio.sleep(0.01)


async def test_a_dying_engine_takes_the_server_out_of_service_and_ends_nothing_else(bench: Bench) -> None:
    server = bench.server
    server.parts.readiness.self_test_passed = True
    await server.start(5.0)
    bench.engine.masked = 12
    async with asyncio.timeout(10.0):
        while value("guard_masked_tokens_total") < 12:
            await asyncio.sleep(0.01)
    bench.engine.errored = True
    await asyncio.sleep(0.1)
    assert not server.serving() and server.ready()[1]["engine"] == "dead"
    assert len(server._tasks) == 3


async def test_an_outage_of_the_store_counts_once(bench: Bench, tmp_path: Path) -> None:
    await bench.server.start(5.0)
    bench.server.refresh()
    before = value("guard_reloads_total", result="failure")
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"guard.db{suffix}").unlink(missing_ok=True)
    (tmp_path / "guard.db").write_bytes(b"garbage" * 1000)
    await asyncio.sleep(0.5)
    bench.server.refresh()
    assert value("guard_reloads_total", result="failure") == before + 1
    assert bench.server.ready()[1]["store"] != "ok"


async def test_work_that_nobody_waits_for_gives_way_while_a_request_is_answered(bench: Bench) -> None:
    server = bench.server
    assert not server.busy()
    with server.running(), server.running():
        assert server.busy() and server.parts.follower.busy()
    assert not server.busy()


async def test_refusals_are_counted_by_reason_and_tenant(bench: Bench) -> None:
    await bench.server.start(5.0)
    tenant = bench.server.tenant_of_key(bench.key)
    assert tenant is not None
    bench.server.count_refused("unknown_field", tenant)
    bench.server.count_refused("invalid_api_key", None)
    assert value("guard_refused_total", reason="unknown_field", tenant=str(tenant.index)) == 1
    assert value("guard_refused_total", reason="invalid_api_key", tenant="none") == 1


def test_the_list_of_models_holds_names_and_no_paths() -> None:
    assert b'"id": "demo"' in models_body(["demo"], 1024) and b"/" not in models_body(["demo"], 1024)
