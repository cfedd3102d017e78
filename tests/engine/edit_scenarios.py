"""What one engine does with activation edits; run by `scenarios.py` in the engine that also runs everything else."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cases import EDIT_SLOTS, PREEMPTED, PROMPT_ALONE, SHORT, corruption, plan, prompt_ids
from edit_cases import EDITED, EDITED_LONG, LANES, PHASE_TOKENS, TENANTS, lane, method_packs, tenant_pack
from harness import Engine, moved, preemptions

from guard.engine.loading import make_resident
from guard.packs.format import Pack
from guard.plan import EditLane, Plan

KIND = "edit"


class Residents:
    """The packs of the scenarios and which of them the engine holds."""

    def __init__(self, engine: Engine, folder: Path, fingerprint: str) -> None:
        self.engine = engine
        self.packs = method_packs(folder, fingerprint)
        self.folder, self.fingerprint = folder, fingerprint

    def pack(self, name: str) -> Pack:
        """A pack by name."""
        pack: Pack = self.packs[name][1]
        return pack

    async def load(self, *names: str) -> None:
        """Make packs resident."""
        for name in names:
            path, pack = self.packs[name]
            await make_resident(self.engine.client, "edit", path, pack.content_hash)

    async def release(self, *names: str) -> None:
        """Take packs out of the engine."""
        for name in names:
            await self.engine.client.collective_rpc("guard_release", args=(KIND, self.pack(name).content_hash))


def edit_plan(length: int, *edits: EditLane, **parts: Any) -> Plan:
    """A plan with these lanes."""
    made: Plan = plan(length, edits=edits, **parts)
    return made


@asynccontextmanager
async def lanes(engine: Engine, fingerprint: str) -> AsyncIterator[tuple[EditLane, ...]]:
    """Four resident lanes."""
    with tempfile.TemporaryDirectory() as folder:
        residents = Residents(engine, Path(folder), fingerprint)
        await residents.load(*LANES)
        yield tuple(lane(residents.pack(name), 0.5) for name in LANES)
        await residents.release(*LANES)


async def methods(engine: Engine, residents: Residents) -> dict[str, Any]:
    """Every method alone at two strengths, four lanes together, and one prompt that is computed in chunks."""
    results: dict[str, Any] = {}
    for name in residents.packs:
        await residents.load(name)
        for strength in (1.0, 0.5):
            what = edit_plan(len(EDITED), lane(residents.pack(name), strength))
            results[f"{name}@{strength}"] = await engine.counted(EDITED, what)
    lanes = [lane(residents.pack(name), 0.5) for name in LANES]
    results["lanes"] = await engine.counted(EDITED, edit_plan(len(EDITED), *lanes))
    results["chunked"] = await engine.counted(EDITED_LONG, edit_plan(len(EDITED_LONG), *lanes))
    results["none"] = await engine.counted(EDITED, plan(len(EDITED), version="none"))
    both = {"edits": (lane(residents.pack("steer")),), "corruption": corruption(3, (5, 9))}
    results["corrupted"] = await engine.counted(EDITED, plan(len(EDITED), **both))
    return results


async def phases(engine: Engine, residents: Residents) -> dict[str, Any]:
    """The same edit in each phase; four tokens are generated, three of them are read again."""
    return {
        phase: await engine.counted(
            EDITED, edit_plan(len(EDITED), lane(residents.pack("steer"), phase=phase), version="phase"),
            max_tokens=PHASE_TOKENS,
        )
        for phase in ("prompt", "generation", "both")
    }


async def cached(engine: Engine, residents: Residents) -> dict[str, Any]:
    """The same prompt again under the same edit, another strength and none."""
    ids = prompt_ids(510, 100)
    steer = residents.pack("steer")
    return {
        "first": await engine.counted(ids, edit_plan(100, lane(steer))),
        "same": await engine.counted(ids, edit_plan(100, lane(steer))),
        "other_strength": await engine.counted(ids, edit_plan(100, lane(steer, 0.25))),
        "no_plan": await engine.counted(ids, plan(100)),
    }


async def preempted(engine: Engine, residents: Residents) -> dict[str, Any]:
    """Three edited requests that do not fit into the cache together, and each of them alone."""
    prompts = [prompt_ids(520 + row, PREEMPTED) for row in range(3)]
    names = ("steer", "map", "clamp")
    plans = [edit_plan(PREEMPTED, lane(residents.pack(name), 0.5)) for name in names]
    alone = [
        await engine.ask(ids, what.model_copy(update={"policy_version": "alone"}), max_tokens=40)
        for ids, what in zip(prompts, plans, strict=True)
    ]
    before, start = preemptions(), await engine.counters()
    together = await engine.batch(list(zip(prompts, plans, strict=True)), max_tokens=40)
    return {
        "alone": [vars(seen) for seen in alone],
        "together": [vars(seen) for seen in together],
        "preemptions": preemptions() - before,
        "moved": moved(start, await engine.counters()),
    }


async def mixed(engine: Engine, residents: Residents) -> dict[str, Any]:
    """One prompt in one batch under every pack and under none."""
    plans = [plan(SHORT, version="mixed")]
    plans += [edit_plan(SHORT, lane(residents.pack(name)), version="mixed", tenant=1) for name in residents.packs]
    seen = await engine.batch([(PROMPT_ALONE, what) for what in plans])
    return {name: vars(each) for name, each in zip(("none", *residents.packs), seen, strict=True)}


async def not_resident(engine: Engine, residents: Residents) -> dict[str, Any]:
    """A valid ticket for a pack that the engine does not hold, and a request after it."""
    await residents.release("guardrail")
    denied = await engine.counted(EDITED, edit_plan(len(EDITED), lane(residents.pack("guardrail")), version="gone"))
    after = await engine.counted(EDITED, edit_plan(len(EDITED), lane(residents.pack("steer")), version="after"))
    return {"denied": denied, "after": after}


async def swapped(engine: Engine, residents: Residents) -> dict[str, Any]:
    """Packs come and go while edited requests run; one is released while a request still uses it."""
    ids = prompt_ids(530, 30)
    what = edit_plan(30, lane(residents.pack("steer")))
    alone = await engine.ask(ids, what.model_copy(update={"policy_version": "alone"}), max_tokens=120)
    start = await engine.counters()
    running = asyncio.create_task(engine.ask(ids, what, max_tokens=120))
    await asyncio.sleep(0.05)
    await residents.release("steer")
    for _ in range(5):
        await residents.release("guardrail", "subspace")
        await residents.load("guardrail", "subspace")
    during = await running
    after = await engine.counters()
    held = {"resident": after["resident_edits"], "moved": moved(start, after)}
    await residents.load("steer")
    return {"alone": vars(alone), "during": vars(during), **held}


async def more_tenants_than_slots(engine: Engine, residents: Residents) -> dict[str, Any]:
    """Twelve packs for six slots, asked for at once; the service's residency lets requests wait for a slot."""
    from prometheus_client import CollectorRegistry

    from guard.metrics import Metrics
    from guard.service.residency.engine_loads import EngineLoads
    from guard.service.residency.residents import Capacity
    from guard.service.residency.residents import Residents as ServiceResidents
    from guard.service.store.pack_files import pack_path

    await residents.release(*residents.packs)
    made = [tenant_pack(residents.folder, residents.fingerprint, tenant) for tenant in range(TENANTS)]
    for path, pack in made:
        place = pack_path(residents.folder, pack.content_hash)
        place.parent.mkdir(exist_ok=True)
        path.rename(place)

    async def call(method: str, arguments: tuple[Any, ...]) -> Any:
        return await engine.client.collective_rpc(method, args=arguments)

    loads = EngineLoads(KIND, call, lambda digest: pack_path(residents.folder, digest))
    residency = ServiceResidents(loads, Capacity(EDIT_SLOTS), 60.0, Metrics(CollectorRegistry()))

    async def ask(tenant: int) -> dict[str, Any]:
        pack = made[tenant][1]
        await residency.acquire((pack.content_hash,))
        try:
            seen = await engine.ask(EDITED, edit_plan(len(EDITED), lane(pack), tenant=tenant), max_tokens=8)
            return dict(vars(seen))
        finally:
            residency.release((pack.content_hash,))

    start = await engine.counters()
    seen = await asyncio.gather(*(ask(tenant) for tenant in list(range(TENANTS)) * 2))
    after = await engine.counters()
    for _, pack in made:
        await engine.client.collective_rpc("guard_release", args=(KIND, pack.content_hash))
    return {"seen": seen, "moved": moved(start, after), "resident": after["resident_edits"]}


async def drafted(engine: Engine, fingerprint: str) -> dict[str, Any]:
    """Edits of draft tokens under speculative decoding."""
    with tempfile.TemporaryDirectory() as folder:
        residents = Residents(engine, Path(folder), fingerprint)
        await residents.load("steer")
        ids = (prompt_ids(400, 8) * 5)[:40]
        counted = await engine.counted(ids, edit_plan(40, lane(residents.pack("steer"))), max_tokens=24)
        await residents.release("steer")
    return {"ids": ids, "counted": counted}


async def observe(engine: Engine, fingerprint: str) -> dict[str, Any]:
    """All edit scenarios of one engine."""
    with tempfile.TemporaryDirectory() as folder:
        residents = Residents(engine, Path(folder), fingerprint)
        results: dict[str, Any] = {"methods": await methods(engine, residents)}
        for name, scenario in (
            ("phases", phases), ("cached", cached), ("preempted", preempted), ("mixed", mixed),
            ("swapped", swapped), ("not_resident", not_resident), ("tenants", more_tenants_than_slots),
        ):
            results[name] = await scenario(engine, residents)
        four = {"n": 4, "temperature": 1.0, "seed": 3, "max_tokens": PHASE_TOKENS}
        await residents.release(*residents.packs)
        await residents.load("steer")
        what = edit_plan(len(EDITED), lane(residents.pack("steer")), version="four")
        results["four"] = await engine.counted(EDITED, what, **four)
        await residents.release("steer")
    return results
