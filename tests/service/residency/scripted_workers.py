"""Two ranks that load packs at a chosen pace and can fail, and the residency that asks them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from guard.errors import PackError, ResidencyError
from guard.metrics import Metrics
from guard.service.residency.engine_loads import EngineLoads
from guard.service.residency.residents import Capacity, Residents

A, B, C, D = "aaaa", "bbbb", "cccc", "dddd"


class Engine:
    """Two ranks that hold `capacity` packs, read in `read_s` seconds; `broken` packs fail when they were read.

    Refuses what a worker refuses: a commit before the pack was read or without a free slot.
    """

    def __init__(self, capacity: int, read_s: float = 0.002) -> None:
        self.capacity, self.read_s = capacity, read_s
        self.broken: set[str] = set()
        self.linger_s = 0.0
        self.states: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []

    @property
    def resident(self) -> set[str]:
        return {digest for digest, state in self.states.items() if state == "resident"}

    async def call(self, method: str, arguments: tuple[Any, ...]) -> list[Any]:
        kind, digest = arguments[0], arguments[-1]
        assert kind == "edit"
        self.calls.append((method, digest))
        await asyncio.sleep(0)
        if method == "guard_release" and not self.linger_s:
            self.states.pop(digest, None)
        elif method == "guard_stage":
            assert Path(arguments[1]).name == f"{digest}.safetensors"
            if self.states.setdefault(digest, "loading") == "loading":
                asyncio.get_running_loop().call_later(self.read_s, self._read, digest)
        elif method == "guard_staged":
            if digest in self.broken and self.states[digest] != "loading":
                raise PackError("the content hash does not match")
            return [self.states[digest], "ready"]
        elif method == "guard_commit":
            if self.states[digest] not in ("ready", "resident") or len(self.resident - {digest}) >= self.capacity:
                raise ResidencyError("there is no free slot")
            self.states[digest] = "resident"
        elif method == "guard_release":
            asyncio.get_running_loop().call_later(self.linger_s, self.states.pop, digest, None)
        return [None, None]

    def loads(self) -> list[str]:
        return [digest for method, digest in self.calls if method == "guard_stage"]

    def _read(self, digest: str) -> None:
        if self.states.get(digest) == "loading":
            self.states[digest] = "ready"


class Served:
    """The residency of an engine, with its metrics."""

    def __init__(
        self, capacity: int, timeout_s: float = 5.0, sizes: dict[str, int] | None = None,
        content_bytes: int | None = None, **engine: Any,
    ) -> None:
        self.engine = Engine(capacity, **engine)
        self.registry = CollectorRegistry()
        self.failed: list[tuple[str, str]] = []
        loads = EngineLoads("edit", self.engine.call, lambda digest: Path("home") / f"{digest}.safetensors")
        self.packs = Residents(
            loads, Capacity(capacity, content_bytes), timeout_s, Metrics(self.registry),
            size_of=lambda digest: (sizes or {}).get(digest, 0),
            on_failure=lambda digest, reason: self.failed.append((digest, reason)),
        )

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def begin(self, *digests: str) -> asyncio.Task[None]:
        return asyncio.create_task(self.packs.acquire(digests))


async def settle() -> None:
    """Let everything that can happen happen."""
    await asyncio.sleep(0.03)
