"""Wires a server together once the engine runs, and starts it."""

from __future__ import annotations

import gc
import sys
from typing import Any

from guard import ticket
from guard.classifiers.detector import Detector
from guard.classifiers.spans import PromptDecoder
from guard.classifiers.vocabulary import Vocabulary
from guard.engine.client import GuardedEngineClient
from guard.metrics import Metrics
from guard.planner import FittedStrength
from guard.service.engine_counters import EngineCounters
from guard.service.follower import SnapshotFollower
from guard.service.gate import GatePipeline
from guard.service.loading import run_self_test
from guard.service.readiness import SILENCE_LIMIT_S, Readiness
from guard.service.residency.compiled_lists import CompiledLists
from guard.service.residency.engine_loads import EngineCall, EngineLoads
from guard.service.residency.hold import Residency
from guard.service.residency.list_files import ListFiles
from guard.service.residency.residents import Capacity, Residents
from guard.service.server import GuardServer, Parts
from guard.service.settings import Settings
from guard.service.snapshot import SnapshotWatcher
from guard.service.soft_match import SoftMatch
from guard.service.store.engine_record import EngineRecord, engine_record
from guard.service.store.pack_files import pack_path

CALL_TIMEOUT_S = 60.0
LISTS_FOLDER = "lists"
SWITCH_INTERVAL_S = 0.001


async def create_server(
    engine: Any, settings: Settings, watcher: SnapshotWatcher, pepper: bytes, detector: Detector,
    fitted: FittedStrength | None,
) -> GuardServer:
    """A server whose self-test has passed and whose first tenants are ready. Raises EngineMismatchError.

    `engine` is vLLM's engine client.
    """
    tokenizer = engine.renderer.get_tokenizer()
    record = engine_record(await engine.collective_rpc("guard_ping", timeout=CALL_TIMEOUT_S))
    await run_self_test(engine, tokenizer)
    server = assemble(engine, tokenizer, settings, watcher, pepper, detector, fitted, record)
    server.parts.readiness.self_test_passed = True
    await server.start(settings.detector_wait_s)
    _favour_requests()
    return server


def assemble(
    engine: Any, tokenizer: Any, settings: Settings, watcher: SnapshotWatcher, pepper: bytes, detector: Detector,
    fitted: FittedStrength | None, record: EngineRecord,
) -> GuardServer:
    """The parts of a server, not yet started."""

    async def call(method: str, arguments: tuple[Any, ...]) -> Any:
        return await engine.collective_rpc(method, timeout=CALL_TIMEOUT_S, args=arguments)

    metrics = Metrics()
    # every running request has a corruption slot of its own
    metrics.slots_capacity.labels("corruption").set(engine.vllm_config.scheduler_config.max_num_seqs)
    files = ListFiles(settings.home.resolve() / LISTS_FOLDER, Vocabulary.from_tokenizer(tokenizer))
    files.remove_unused()
    lists = CompiledLists(files, settings.lists_memory_mb << 20, settings.residency_timeout_s)
    residency = make_residency(call, lists, settings, record, metrics)
    # the engine is asked once every interval
    readiness = Readiness(engine, watcher, silence_limit_s=SILENCE_LIMIT_S + settings.counter_interval_s)
    soft = SoftMatch(detector.background(), tokenizer)
    gate = GatePipeline(PromptDecoder(tokenizer), detector, lists, residency, metrics, ticket.read_key(), fitted, soft)
    client = GuardedEngineClient(engine, gate, on_shutdown=lambda: server.drain())
    follower = SnapshotFollower(watcher, lists, residency, detector, metrics, settings.warm_tenants)
    counters = EngineCounters(call, metrics, readiness, settings.counter_interval_s)
    parts = Parts(
        client, detector, lists, residency, watcher, follower, counters, readiness, metrics, record
    )
    server = GuardServer(parts, pepper, settings.counter_interval_s)
    return server


def make_residency(
    call: EngineCall, lists: CompiledLists, settings: Settings, record: EngineRecord, metrics: Metrics
) -> Residency:
    """Room in the engine for forget-lists and for edit packs."""
    home, timeout_s = settings.home.resolve(), settings.residency_timeout_s
    constraints = Residents(
        EngineLoads("constraint", call, lists.path_of), Capacity(settings.max_lists, settings.lists_memory_mb << 20),
        timeout_s, metrics, size_of=lists.size_of, on_failure=lists.discard,
    )
    packs = Residents(
        EngineLoads("edit", call, lambda digest: pack_path(home, digest)),
        Capacity(record.max_slots if record.sites else 0), timeout_s, metrics,
    )
    return Residency(constraints, packs)


def _favour_requests() -> None:
    """Settings of the interpreter that let the event loop go on while lists are compiled beside it."""
    # what lies in memory now stays: with thousands of tenants one look of the collector at all of it takes a tenth of a
    # second, in which no request goes on
    gc.collect()
    gc.freeze()
    # each token of a stream wakes the event loop, which would wait this long for a thread that compiles
    sys.setswitchinterval(SWITCH_INTERVAL_S)
