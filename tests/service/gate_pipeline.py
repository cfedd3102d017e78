"""A gate with the real decoder, automaton and tickets; only detector and engine are scripted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from guard.classifiers.answers import compares_answers
from guard.classifiers.automaton import Vocabulary
from guard.classifiers.spans import PromptDecoder
from guard.engine.admission import Admission, RequestContext
from guard.errors import DetectorError
from guard.metrics import Metrics
from guard.policy import OutputPolicy, Policy, Target, Tenant, TenantSpec, tenant_of
from guard.service.gate import GateLeave, GatePipeline
from guard.service.residency.compiled_lists import CompiledLists
from guard.service.residency.engine_loads import EngineLoads
from guard.service.residency.hold import Residency
from guard.service.residency.list_files import ListFiles
from guard.service.residency.residents import Capacity, Residents
from guard.service.store.pack_files import pack_path
from guard.verdict import TargetHit, Verdict

KEY = b"k" * 64
FLAGGED = Verdict((TargetHit(0, 0.9, "lexical"),))
OPEN = tenant_of(TenantSpec(name="open"), 1)
CALM, STYLE = "c" * 64, "5" * 64
MEANING = OutputPolicy(semantic=True)


def tenant(forbid: tuple[str, ...] | None = ("Granite Glossary",), allow_echo: bool = True, **policy: Any) -> Tenant:
    """A tenant that forgets one author."""
    target = Target(
        name="Hina Ameen", answers=('She wrote "Shale Stories" in Karachi.',), forbid=forbid, allow_echo=allow_echo
    )
    return tenant_of(TenantSpec(name="acme", policy=Policy(**policy), targets=(target,)), 2)


class Pipeline:
    """A gate whose detector gives `verdict` and whose engine takes every call that `failing` does not name."""

    def __init__(self, tokenizer: Any, home: Path, verdict: Verdict | Exception, failing: str = "") -> None:
        self.tokenizer, self.verdict, self.failing = tokenizer, verdict, failing
        self.cosine: float | None = None
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.registry = CollectorRegistry()
        self.vocabulary = Vocabulary.from_tokenizer(tokenizer)
        self.clock_s = 0.0
        metrics = Metrics(self.registry)
        self.lists = CompiledLists(
            ListFiles(home / "lists", self.vocabulary), 1 << 24, timeout_s=30.0, now_s=lambda: self.clock_s
        )
        self.residency = Residency(
            Residents(
                EngineLoads("constraint", self.call, self.lists.path_of), Capacity(8), 30.0, metrics,
                size_of=self.lists.size_of, on_failure=self.lists.discard,
            ),
            Residents(
                EngineLoads("edit", self.call, lambda digest: pack_path(home, digest)), Capacity(2), 0.5, metrics
            ),
        )
        self.gate = GatePipeline(PromptDecoder(tokenizer), self, self.lists, self.residency, metrics, KEY)
        self.open = AsyncExitStack()

    async def call(self, method: str, arguments: tuple[Any, ...]) -> list[str]:
        self.calls.append((method, arguments))
        if method == self.failing:
            raise RuntimeError("worker died")
        return ["ready"]

    def can_compare(self, owner: Tenant) -> bool:
        return self.cosine is not None or not compares_answers(owner)

    async def similarity(self, owner: Tenant, targets: Sequence[int], sentence: str) -> float:
        if self.cosine is None or not targets:
            raise DetectorError("too late")
        return self.cosine

    async def detect(self, owner: Tenant, prompt: Any, asked: Any = None) -> Verdict:
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict

    def ids(self, question: str) -> list[int]:
        messages = [{"role": "user", "content": question}]
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(rendered)["input_ids"])

    async def enter(self, owner: Tenant, question: str = "Where was Hina Ameen born?") -> GateLeave:
        """A request that runs until `end`."""
        return await self.enter_ids(owner, self.ids(question))

    async def enter_ids(self, owner: Tenant, token_ids: Sequence[int]) -> GateLeave:
        """A request with these tokens that runs until `end`."""
        return await self.open.enter_async_context(self.gate.admitted(RequestContext("r", owner), token_ids))

    async def admit(self, owner: Tenant, question: str = "Where was Hina Ameen born?") -> Admission:
        """The admission of a request that runs until `end`."""
        return (await self.enter(owner, question)).admission

    async def end(self) -> None:
        """End all requests."""
        await self.open.aclose()

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0
