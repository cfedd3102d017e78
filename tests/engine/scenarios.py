"""Runs one real engine through all scenarios and writes what it observed as JSON; started as a process by the tests.

usage: scenarios.py guarded|stock v1|v2 MODEL_FOLDER OUTPUT_FILE [--ngram|--again|--fitted]

`stock` is plain vLLM without the guard and runs only what guarded results are compared with.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import edit_scenarios
from cases import (
    BATCH,
    BATCH_PROMPTS,
    LIFETIME_S,
    LONG,
    PLAN_LONG,
    PLAN_OTHER,
    PLAN_SHORT,
    PREEMPTED,
    PROMPT_ALONE,
    PROMPT_LONG,
    SHORT,
    corruption,
    plan,
    prompt_ids,
)
from fitted_scenario import fitted
from harness import Engine, ForbiddenWords, FrozenCounters, drafted_tokens, engine_arguments, moved, preemptions
from opened_scenario import opened

from guard.engine.lifetime import tie_processes
from guard.errors import EngineMismatchError
from guard.packs.fingerprint import model_fingerprint
from guard.plan import Constraint, EditLane, Plan
from guard.ticket import create_key, read_key, sign


async def compared_with_stock(engine: Engine, edits: tuple[EditLane, ...] = ()) -> dict[str, Any]:
    """Runs on both engines: the unguarded request alone, and the first of 16; the others are corrupted and edited."""
    plans: list[Plan | None] = [None] * BATCH
    if engine.guarded:
        plans = [None] + [
            plan(len(ids), corruption=corruption(row, (2, 12)), edits=edits[: row % 5])
            for row, ids in enumerate(BATCH_PROMPTS[1:], 1)
        ]
    return {
        "alone": vars(await engine.ask(PROMPT_ALONE)),
        "batch": [vars(seen) for seen in await engine.batch(list(zip(BATCH_PROMPTS, plans, strict=True)))],
    }


async def corrupted(engine: Engine) -> dict[str, Any]:
    """Corruption of one request, chunked and not, and what the counters say."""
    return {
        "short": await engine.counted(PROMPT_ALONE, plan(SHORT, corruption=PLAN_SHORT)),
        "empty": await engine.counted(PROMPT_ALONE, plan(SHORT, version="again")),
        "long": await engine.counted(PROMPT_LONG, plan(LONG, corruption=PLAN_LONG)),
    }


async def preempted(engine: Engine) -> dict[str, Any]:
    """Three long requests that do not fit into the cache together, and each of them alone.

    The other two grow until they take blocks of the preempted one, which must then be computed again.
    """
    prompts = [prompt_ids(200 + row, PREEMPTED) for row in range(3)]
    plans = [corruption(row + 1, (0, 5), (90, 110), (180, 190)) for row in range(3)]
    alone = [
        await engine.ask(ids, plan(PREEMPTED, corruption=part, version="alone"), max_tokens=40)
        for ids, part in zip(prompts, plans, strict=True)
    ]
    before, start = preemptions(), await engine.counters()
    asked: list[tuple[list[int], Plan | None]] = [
        (ids, plan(PREEMPTED, corruption=part)) for ids, part in zip(prompts, plans, strict=True)
    ]
    together = await engine.batch(asked, max_tokens=40)
    return {
        "alone": [vars(seen) for seen in alone],
        "together": [vars(seen) for seen in together],
        "preemptions": preemptions() - before,
        "moved": moved(start, await engine.counters()),
    }


async def preempted_and_constrained(engine: Engine, words: ForbiddenWords) -> dict[str, Any]:
    """As `preempted`, but they may say two words only, and not the second right after the first.

    Whether the second word is masked depends on the text, which the preempted request gets back all at once.
    """
    prompts = [prompt_ids(200 + row, PREEMPTED) for row in range(3)]
    params = words.pair_params(40)
    rule = Constraint(digest=words.digest, start=PREEMPTED)
    free = await engine.ask(prompts[0], plan(PREEMPTED, version="free"), **params)
    before, start = preemptions(), await engine.counters()
    together = await engine.batch([(ids, plan(PREEMPTED, constraint=rule)) for ids in prompts], **params)
    return {
        "free": vars(free),
        "together": [vars(seen) for seen in together],
        "preemptions": preemptions() - before,
        "moved": moved(start, await engine.counters()),
    }


async def seeded_in_chunks(engine: Engine) -> list[dict[str, Any]]:
    """A seeded sample of a prompt that is computed in chunks, twice; stock vLLM's V1 runner fails here on a CPU."""
    ids = prompt_ids(310, 150)
    return [
        vars(await engine.ask(ids, plan(150, version=version), temperature=1.0, seed=7, max_tokens=12))
        for version in ("first", "second")
    ]


async def cached(engine: Engine) -> dict[str, Any]:
    """The same prompt again under the same plan, another plan, another tenant and no plan."""
    ids = prompt_ids(300, 100)
    part = corruption(5, (30, 40))
    return {
        "first": await engine.counted(ids, plan(100, corruption=part)),
        "same": await engine.counted(ids, plan(100, corruption=part)),
        "other_plan": await engine.counted(ids, plan(100, corruption=corruption(6, (30, 40)))),
        "other_tenant": await engine.counted(ids, plan(100, corruption=part, tenant=1)),
        "no_plan": await engine.counted(ids, plan(100)),
        "no_plan_again": await engine.counted(ids, plan(100)),
        "no_plan_other_tenant": await engine.counted(ids, plan(100, tenant=1)),
    }


async def mixed(engine: Engine) -> list[dict[str, Any]]:
    """One prompt under four plans in one batch."""
    length = len(PROMPT_ALONE)
    plans = [
        plan(length, version="mixed"), plan(length, tenant=1, corruption=PLAN_SHORT, version="mixed"),
        plan(length, tenant=2, corruption=PLAN_OTHER, version="mixed"), plan(length, tenant=3, version="mixed"),
    ]
    return [vars(seen) for seen in await engine.batch([(PROMPT_ALONE, what) for what in plans])]


async def refused(engine: Engine) -> dict[str, Any]:
    """Requests that no valid ticket covers, then one that is in order."""
    now, key, length = time.time(), read_key(), SHORT
    good = plan(length)
    valid = sign(good, "s" * 48, PROMPT_ALONE, key, now_s=now)
    tickets = {
        "missing": "",
        "garbage": "not-a-ticket",
        "forged": sign(good, "s" * 48, PROMPT_ALONE, b"x" * 64, now_s=now),
        "expired": sign(good, "s" * 48, PROMPT_ALONE, key, now_s=now - LIFETIME_S - 60),
        "other_prompt": sign(good, "s" * 48, PROMPT_ALONE[:-1] + [11], key, now_s=now),
        "other_length": sign(plan(length + 1), "s" * 48, PROMPT_ALONE, key, now_s=now),
        "no_salt": sign(good, "", PROMPT_ALONE, key, now_s=now),
        "changed": valid[:-1] + ("0" if valid[-1] != "0" else "1"),
    }
    results: dict[str, Any] = {}
    for name, ticket in tickets.items():
        results[name] = vars(await asyncio.wait_for(engine.ask(PROMPT_ALONE, ticket=ticket), timeout=60))
    results["alive"] = vars(await engine.ask(PROMPT_ALONE, plan(length, version="alive")))
    return results


async def constrained(engine: Engine, words: ForbiddenWords) -> dict[str, Any]:
    """Only a token that spells a forbidden word is allowed, or it and one other, with and without the constraint."""
    rule = Constraint(digest=words.digest, start=SHORT)
    only: dict[str, Any] = {"allowed_token_ids": [words.single], "max_tokens": 6}
    both: dict[str, Any] = {"allowed_token_ids": [words.single, PROMPT_ALONE[0]], "max_tokens": 6}
    four: dict[str, Any] = words.pair_params(12) | {"n": 4, "seed": 5}
    bound = plan(SHORT, constraint=rule)
    results = {
        "free": await engine.counted(PROMPT_ALONE, plan(SHORT, version="free"), **only),
        "bound": await engine.counted(PROMPT_ALONE, bound, **both),
        "alone": await engine.counted(PROMPT_ALONE, bound, **only),
        "four": await engine.counted(PROMPT_ALONE, bound, **both | {"n": 4, "temperature": 1.0}),
        "pair_free": await engine.counted(PROMPT_ALONE, plan(SHORT, version="free"), **four),
        "pair_bound": await engine.counted(PROMPT_ALONE, bound, **four),
        "engine": await engine.client.engine_core.call_utility_async("guard_engine_counters"),
    }
    return results | {"token": words.single, "pair": [words.first, words.second]}


async def dummy(engine: Engine) -> dict[str, Any]:
    """A step of an idle rank right after a corrupted request."""
    await engine.ask(PROMPT_ALONE, plan(SHORT, corruption=PLAN_SHORT, version="dummy"))
    before = await engine.counters()
    await engine.client.collective_rpc("execute_dummy_batch")
    return {"before": before, "after": await engine.counters()}


async def drafted(engine: Engine, words: ForbiddenWords) -> dict[str, Any]:
    """Speculative decoding: repetitive prompts, so that the n-gram drafter has something to propose."""
    ids = (prompt_ids(400, 8) * 5)[: SHORT + 16]
    part = corruption(3, (4, 9), (30, 33))
    # the drafter proposes the forbidden pair again and again
    repeated = [words.first, words.second] * 16
    rule = Constraint(digest=words.digest, start=len(repeated))
    before = drafted_tokens()
    params = words.pair_params(24) | {"seed": 5}
    pair_free = await engine.counted(repeated, plan(len(repeated)), **params)
    between = drafted_tokens()
    pair_bound = await engine.counted(repeated, plan(len(repeated), constraint=rule), **params)
    return {
        "ids": ids,
        "pair_free": pair_free,
        "pair_bound": pair_bound,
        "drafted": [between - before, drafted_tokens() - between],
        "corrupted": await engine.counted(ids, plan(len(ids), corruption=part), max_tokens=12),
        "empty": await engine.counted(ids, plan(len(ids)), max_tokens=12),
        "batch": [vars(seen) for seen in await engine.batch([
            (ids, plan(len(ids), version="b")), (ids, plan(len(ids), corruption=part, version="b")),
        ], max_tokens=12)],
    }


async def observe(engine: Engine, model: str, ngram: bool) -> dict[str, Any]:
    """All results of this engine."""
    if not engine.guarded:
        return {"stock": await compared_with_stock(engine)}
    from transformers import AutoTokenizer

    from guard.engine.selftest import selftest

    tokenizer = AutoTokenizer.from_pretrained(model)
    fingerprint = model_fingerprint(Path(model))
    words = await ForbiddenWords.load(engine, tokenizer)
    if ngram:
        report = await selftest(engine.client, tokenizer, read_key())
        seen = {"drafted": await drafted(engine, words), "constrained": await constrained(engine, words)}
        seen["opened"] = await opened(engine, words, tokenizer)
        seen["edits"] = await edit_scenarios.drafted(engine, fingerprint)
        return {"selftest": report, **seen}
    report = await selftest(engine.client, tokenizer, read_key())
    results: dict[str, Any] = {"selftest": report, "unhealthy": {}}
    for name, client, key in (
        ("frozen_counters", FrozenCounters(engine.client), read_key()), ("other_key", engine.client, b"x" * 64),
    ):
        try:
            await selftest(client, tokenizer, key)
        except EngineMismatchError as error:
            results["unhealthy"][name] = str(error)
    async with edit_scenarios.lanes(engine, fingerprint) as edits:
        results["stock"] = await compared_with_stock(engine, edits)
    for name, scenario in (
        ("corrupted", corrupted), ("cached", cached), ("mixed", mixed), ("refused", refused), ("dummy", dummy),
        ("preempted", preempted), ("seeded_in_chunks", seeded_in_chunks),
    ):
        results[name] = await scenario(engine)
    four = {"n": 4, "temperature": 1.0, "seed": 3}
    results["four"] = await engine.counted(PROMPT_ALONE, plan(SHORT, corruption=PLAN_SHORT, version="four"), **four)
    results["preempted_and_constrained"] = await preempted_and_constrained(engine, words)
    results["constrained"] = await constrained(engine, words)
    results["opened"] = await opened(engine, words, tokenizer)
    await engine.client.collective_rpc("guard_release", args=("constraint", words.digest))
    results["edits"] = await edit_scenarios.observe(engine, fingerprint)
    results["ping"] = await engine.client.collective_rpc("guard_ping")
    return results


def compiled(worker: Any) -> dict[str, int]:
    """Runs in a stock worker, which has no `guard_ping`: what torch.compile did there."""
    from guard.engine.compat import compile_counters

    return compile_counters()


async def main() -> None:
    """Start the engine, run the scenarios, write the results."""
    kind, runner, model, output = sys.argv[1:5]
    guarded, ngram = kind == "guarded", "--ngram" in sys.argv
    if guarded:
        create_key()
    # a scenario that is killed must not leave an engine behind that polls a core
    tie_processes()
    from vllm.v1.engine.async_llm import AsyncLLM

    client = AsyncLLM.from_engine_args(engine_arguments(model, guarded, runner, ngram))
    try:
        if "--again" in sys.argv:
            from transformers import AutoTokenizer

            from guard.engine.selftest import selftest

            results = {"selftest": await selftest(client, AutoTokenizer.from_pretrained(model), read_key())}
        elif "--fitted" in sys.argv:
            results = await fitted(Engine(client, guarded), Path(model))
        else:
            results = await observe(Engine(client, guarded), model, ngram)
        if guarded:
            results["compiled"] = (await client.collective_rpc("guard_ping"))[0]["compiled"]
        else:
            results["compiled"] = (await client.collective_rpc(compiled))[0]  # type: ignore[arg-type]
    finally:
        client.shutdown()
    results["environment"] = {"runner": runner, "kind": kind, "process": os.getpid()}
    Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    asyncio.run(main())
