"""The sections of `bench/scale.py` that ask a running server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import scale_load as load
from scale_load import Answer, Question
from scale_server import Publisher, Server, guard, total
from scale_tenants import (
    LARGE,
    PLAIN,
    large_target,
    make_keys,
    question,
    tenant_name,
    write_large_tenant,
    write_tenants,
)

from guard.service.files.tenant_file import load_tenant_file

SETTLE_S = 15.0
ORDINARY = "What is the capital of France?"
# how long the list of 100,000 strings may take before the section gives up
LARGE_S = 600.0
TRAFFIC_TENANTS = 40
BATCH_TOKENS = 400


@dataclass(frozen=True)
class Sizes:
    """How much of everything: tenants, strings, samples; the steady traffic has `rate` requests a second.

    One stretch of it lasts `seconds`, and there are `rounds` of each kind.
    """

    tenants: int
    active: int
    batch: int
    changes: int
    strings: int
    samples: int
    rate: float
    seconds: float
    rounds: int


@dataclass(frozen=True)
class Stage:
    """A server with all tenants, a folder for files, a key of every tenant by name, and a function for progress."""

    server: Server
    folder: Path
    keys: dict[str, str]
    sizes: Sizes
    say: Callable[[str], None]

    def flagged(self, number: int, target: int = 0) -> Question:
        """A prompt that touches a target of tenant `number`."""
        return Question(self.keys[tenant_name(number)], question(number, target=target))

    def traffic(self) -> list[Question]:
        """Prompts of tenants that change in no section: half of them flagged."""
        last = self.sizes.active
        numbers = range(max(0, last - TRAFFIC_TENANTS), last)
        flagged = [self.flagged(number) for number in numbers]
        ordinary = [Question(self.keys[tenant_name(number)], ORDINARY) for number in numbers]
        return [each for pair in zip(flagged, ordinary, strict=True) for each in pair]


def asked_at_once(batch: int) -> int:
    """Tenants that are asked so that `batch` of them answer at the same time."""
    return batch + batch // 6


async def first_requests(stage: Stage, http: httpx.AsyncClient) -> dict[str, Any]:
    """Time to the first token, one request at a time: cold and warm tenants in turn with one that has no list."""
    plain = Question(stage.keys[PLAIN], ORDINARY)
    await load.ask_all(http, [plain] * 20, at_once=1)
    # tenants from the far end: neither made ready at the start nor asked before
    numbers = range(stage.sizes.tenants - stage.sizes.samples, stage.sizes.tenants)
    found: dict[str, list[Answer]] = {name: [] for name in ("cold", "warm", "warm_ordinary", "plain", "plain_same")}
    for number in numbers:
        flagged = stage.flagged(number)
        ordinary, same = Question(flagged.key, ORDINARY), Question(plain.key, flagged.text)
        found["cold"].append(await load.ask(http, flagged))
        # what goes on in the background after the first request would be part of the second
        await asyncio.sleep(1.0)
        for name, asked in (("warm", flagged), ("warm_ordinary", ordinary), ("plain", plain), ("plain_same", same)):
            found[name].append(await load.ask(http, asked))
    first_s = {name: [answer.first_s for answer in answers] for name, answers in found.items()}
    over_s = [warm - bare for warm, bare in zip(first_s["warm"], first_s["plain_same"], strict=True)]
    over_ordinary_s = [warm - bare for warm, bare in zip(first_s["warm_ordinary"], first_s["plain"], strict=True)]
    return {
        "samples": stage.sizes.samples,
        "first_token_s": {name: _spread(values) for name, values in first_s.items()},
        "warm_over_unguarded_ms": {
            "flagged": round(median(over_s) * 1e3, 1), "ordinary": round(median(over_ordinary_s) * 1e3, 1),
        },
        "statuses": {name: load.statuses(answers) for name, answers in found.items()},
    }


async def active(stage: Stage, http: httpx.AsyncClient) -> dict[str, Any]:
    """One flagged request to each of the active tenants, and what their readiness takes in memory."""
    before, memory = stage.server.metrics(), stage.server.memory()
    began_s = time.perf_counter()
    answers = await load.ask_all(http, [stage.flagged(n) for n in range(stage.sizes.active)], at_once=16)
    elapsed_s = time.perf_counter() - began_s
    stage.say(f"asked in {elapsed_s:.1f} s: {load.statuses(answers)}")
    await asyncio.sleep(SETTLE_S)
    after = stage.server.memory()
    return {
        "seconds": round(elapsed_s, 1), "first_token_s": _spread([answer.first_s for answer in answers]),
        "memory_kb_per_active_tenant": {
            kind: round((after[kind] - memory[kind]) / stage.sizes.active, 1) for kind in after
        },
        **_enforced(stage, before, answers),
    }


async def batch(stage: Stage, http: httpx.AsyncClient) -> dict[str, Any]:
    """Long answers to flagged requests of many tenants at once, after each has been asked once.

    A few more than the batch is to hold are asked: some answers end early.
    """
    numbers = range(asked_at_once(stage.sizes.batch))
    await load.ask_all(http, [stage.flagged(number) for number in numbers], at_once=16)
    await asyncio.sleep(2.0)
    before, running = stage.server.metrics(), [0.0]
    done = asyncio.Event()

    async def watch() -> None:
        while not done.is_set():
            metrics = await asyncio.to_thread(stage.server.metrics)
            running.append(total(metrics, "vllm:num_requests_running"))
            await asyncio.sleep(0.2)

    watcher = asyncio.create_task(watch())
    questions = [stage.flagged(number, target=1) for number in numbers]
    began_s = time.perf_counter()
    answers = await load.ask_all(http, questions, at_once=len(questions), max_tokens=BATCH_TOKENS)
    elapsed_s = time.perf_counter() - began_s
    done.set()
    await watcher
    return {
        "tenants": len(numbers), "seconds": round(elapsed_s, 1), "most_running_by_metrics": int(max(running)),
        "most_running_at_once": load.most_at_once(answers),
        "whole_s": _spread([answer.whole_s for answer in answers]),
        "first_token_s": _spread([answer.first_s for answer in answers]),
        **await _settled(stage, before, answers),
    }


async def change(stage: Stage, http: httpx.AsyncClient) -> dict[str, Any]:
    """Latency of tenants that do not change, in stretches of four kinds that take turns."""
    await load.ask_all(http, [stage.flagged(n) for n in range(stage.sizes.active)], at_once=16)
    traffic = stage.traffic()
    await load.steady(http, traffic, stage.sizes.rate, min(10.0, stage.sizes.seconds))
    found: dict[str, list[Answer]] = {}
    before = stage.server.metrics()
    for turn in range(stage.sizes.rounds):
        numbers, version = range(stage.sizes.changes), 2 * turn + 1
        same = write_tenants(stage.folder / "same.yaml", numbers, 2 * turn)
        one_by_one = write_tenants(stage.folder / "one.yaml", numbers, version)
        together = write_tenants(stage.folder / "all.yaml", numbers, version + 1)
        for name, meanwhile in (
            ("quiet", None), ("apply_without_change", _apply(stage, same)),
            ("one_by_one", _publish(stage, one_by_one)), ("apply", _apply(stage, together)),
        ):
            answers = await load.steady(http, traffic, stage.sizes.rate, stage.sizes.seconds, meanwhile)
            found.setdefault(name, []).extend(answers)
            stage.say(f"round {turn + 1}, {name}: {_latency(answers)}")
    p99_s = {name: load.quantile([a.whole_s for a in answers], 0.99) for name, answers in found.items()}
    everything = [answer for answers in found.values() for answer in answers]
    return {
        "lists": stage.sizes.changes, "latency_ms": {name: _latency(answers) for name, answers in found.items()},
        "p99_over_quiet_ms": round((p99_s["one_by_one"] - p99_s["quiet"]) * 1e3, 1),
        "p99_over_apply_without_change_ms": round((p99_s["apply"] - p99_s["apply_without_change"]) * 1e3, 1),
        "statuses": load.statuses(everything),
        "unguarded": _grown(before, stage.server.metrics(), "guard_unguarded_total"),
    }


async def large(stage: Stage, http: httpx.AsyncClient) -> dict[str, Any]:
    """A tenant with very many forbidden strings appears: until it is answered, and what others notice."""
    traffic = stage.traffic()
    await load.ask_all(http, traffic, at_once=8)
    quiet = await load.steady(http, traffic, stage.sizes.rate, stage.sizes.seconds)
    file, found = write_large_tenant(stage.folder / "large.yaml", stage.sizes.strings), {}

    async def appear() -> None:
        found["apply_s"] = await asyncio.to_thread(guard, stage.server.home, "apply", file, "--json")
        applied_s = time.perf_counter()
        keys = await asyncio.to_thread(make_keys, stage.server.home, [LARGE])
        asked = Question(keys[LARGE], f"Where was {large_target()} born?")
        refused = 0
        while (answer := await load.ask(http, asked)).status != httpx.codes.OK:
            refused += 1
            if time.perf_counter() - applied_s > LARGE_S:
                raise SystemExit(f"the tenant with {stage.sizes.strings} strings is not answered: {answer.status}")
            await asyncio.sleep(0.25)
        found.update(answered_s=time.perf_counter() - applied_s, refused_before=refused)
        found["warm_first_token_s"] = (await load.ask(http, asked)).first_s

    during = await load.steady(http, traffic, stage.sizes.rate, stage.sizes.seconds, appear)
    return {
        "strings": stage.sizes.strings, **{name: round(value, 3) for name, value in found.items()},
        "others_latency_ms": {"quiet": _latency(quiet), "meanwhile": _latency(during)},
        "others_statuses": load.statuses(during),
        "memory_kb": stage.server.memory(),
    }


def _apply(stage: Stage, file: Path) -> Callable[[], Any]:
    return lambda: asyncio.to_thread(guard, stage.server.home, "apply", file, "--json")


def _publish(stage: Stage, file: Path) -> Callable[[], Any]:
    """Publish the tenants of `file` one after the other, spread over a stretch, by a process that waits until then."""
    count = len(load_tenant_file(file).tenants)
    pause_s = 0.8 * stage.sizes.seconds / count
    publisher = Publisher(stage.server.home, file, pause_s)
    return lambda: asyncio.to_thread(publisher.run)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {name: round(load.quantile(values, share), 4) for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))}


def _latency(answers: Sequence[Answer]) -> dict[str, float]:
    values = [answer.whole_s * 1e3 for answer in answers]
    shares = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    return {"requests": len(values), **{name: round(load.quantile(values, share), 1) for name, share in shares}}


async def _settled(stage: Stage, before: dict[Any, float], answers: Sequence[Answer]) -> dict[str, Any]:
    # the engine's counters are read every two seconds
    await asyncio.sleep(6.0)
    return _enforced(stage, before, answers)


def _enforced(stage: Stage, before: dict[Any, float], answers: Sequence[Answer]) -> dict[str, Any]:
    """What the server counted while `answers` were made."""
    after = stage.server.metrics()
    return {
        "statuses": load.statuses(answers),
        "flagged": _grown(before, after, "guard_requests_total", phase="input", action="forget"),
        "unguarded": _grown(before, after, "guard_unguarded_total"),
        "refused": _grown(before, after, "guard_refused_total"),
        "planned_corruption": _grown(before, after, "guard_planned_total", kind="corruption"),
        "planned_constraint": _grown(before, after, "guard_planned_total", kind="constraint"),
        "corrupted_tokens_expected": _grown(before, after, "guard_enforcement_expected_total", kind="corruption"),
        "corrupted_tokens_counted": _grown(before, after, "guard_enforcement_counted_total", kind="corruption"),
    }


def _grown(before: dict[Any, float], after: dict[Any, float], name: str, **labels: str) -> int:
    return int(total(after, name, **labels) - total(before, name, **labels))
