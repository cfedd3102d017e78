"""Answers that follow a script: a gate and an engine for the tests of the engine client.

The engine is a function from (tokens so far, constraint on or off) to the pieces it would say next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine.admission import CURRENT_REQUEST, Admission, IgnoranceEnd, Leave, OutputCheck, RequestContext
from guard.engine.client import GuardedEngineClient
from guard.errors import RequestRefused
from guard.plan import Constraint, Plan
from guard.policy import Target, TenantSpec, tenant_of
from guard.sentences import unfinished
from guard.stream import OutputMatcher, PatternSet

ACME = tenant_of(TenantSpec(name="acme", targets=(Target(name="Ada"),)), 2)
OPEN = tenant_of(TenantSpec(name="open"), 1)
PROMPT = [11, 12, 13]
Script = Callable[[Sequence[int], bool], list[str]]


class ScriptedGate:
    """Admits everything with `patterns`; a resumed request has the constraint on."""

    def __init__(
        self, patterns: tuple[str, ...], *, max_rollbacks: int = 2, refuse: bool = False, resumes: bool = True,
        similar: Callable[[str], bool] | None = None, before: str = "", names: frozenset[int] = frozenset(),
        wordings: tuple[str, ...] = (), bias: Mapping[int, float] | None = None,
    ) -> None:
        self.bias = bias or {}
        self.similar_to, self.compared = similar, list[str]()
        self.refuse, self.resumes = refuse, resumes
        self.counts = {"held_back": 0, "rollbacks": 0, "filtered": 0}
        self.finished = 0
        self.resumed: list[list[int]] = []
        matcher = OutputMatcher(PatternSet.compile(patterns), seed=before)
        targets = () if similar is None else (0,)
        self.check = OutputCheck(matcher, max_rollbacks, targets, unfinished(before), names)
        # the check of an answer that has named a target, and what was said of every such answer before
        self.flagged = OutputCheck(matcher, max_rollbacks, end=IgnoranceEnd(wordings, 1) if wordings else None)
        self.said: list[str] = []

    def admit_now(self, context: RequestContext, token_ids: Sequence[int]) -> Admission | None:
        if context.tenant.guarded:
            return None
        return Admission(Plan(tenant_index=1, policy_version="v", prompt_length=len(token_ids)), "open-ticket", "salt")

    @asynccontextmanager
    async def admitted(self, context: RequestContext, token_ids: Sequence[int]) -> AsyncGenerator[Leave, None]:
        await asyncio.sleep(0)
        if self.refuse:
            raise RequestRefused("no", code="content_filter")
        try:
            yield ScriptedLeave(self, token_ids)
        finally:
            await asyncio.sleep(0)
            self.finished += 1


class ScriptedLeave:
    """One generation that a `ScriptedGate` admitted."""

    def __init__(self, gate: ScriptedGate, token_ids: Sequence[int]) -> None:
        self._gate = gate
        self.admission = self._admit(token_ids, constrained=False)

    async def resume(self, token_ids: Sequence[int]) -> Admission:
        if not self._gate.resumes:
            raise RequestRefused("gone", status=503)
        self._gate.resumed.append(list(token_ids))
        self.admission = self._admit(token_ids, constrained=True)
        return self.admission

    async def flag(self, token_ids: Sequence[int], text: str) -> Admission:
        if not self._gate.resumes:
            raise RequestRefused("gone", status=503)
        self._gate.said.append(text)
        self.admission = replace(self._admit(token_ids, constrained=True), check=self._gate.flagged)
        return self.admission

    async def similar(self, sentence: str) -> bool:
        await asyncio.sleep(0)
        self._gate.compared.append(sentence)
        return self._gate.similar_to is not None and self._gate.similar_to(sentence)

    def count_output(self, *, held_back: int = 0, rollbacks: int = 0, filtered: int = 0) -> None:
        for name, value in (("held_back", held_back), ("rollbacks", rollbacks), ("filtered", filtered)):
            self._gate.counts[name] += value

    def _admit(self, token_ids: Sequence[int], *, constrained: bool) -> Admission:
        rule = Constraint(digest="d", start=0) if constrained else None
        plan = Plan(tenant_index=2, policy_version="v", prompt_length=len(token_ids), constraint=rule)
        return Admission(plan, "ticket", "salt", self._gate.check, self._gate.bias)


class ScriptedEngine:
    """Says what `script` says, one token a piece; remembers the requests and which of them were closed early."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.vllm_config = SimpleNamespace(speculative_config=None)
        self.requests: list[tuple[Any, SamplingParams, str]] = []
        self.closed: list[str] = []

    async def generate(
        self, prompt: Any, params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        self.requests.append((prompt, params, request_id))
        pieces = self.script(prompt["prompt_token_ids"][len(PROMPT) :], len(self.requests) > 1)
        try:
            for position, piece in enumerate(pieces):
                await asyncio.sleep(0)
                last = position == len(pieces) - 1 or (
                    params.max_tokens is not None and position + 1 >= params.max_tokens
                )
                reason = ("stop" if position == len(pieces) - 1 else "length") if last else None
                token = CompletionOutput(0, piece, [100 + len(piece)], None, None, finish_reason=reason)
                yield RequestOutput(request_id, None, PROMPT, None, [token], last)
                if last:
                    return
        except (asyncio.CancelledError, GeneratorExit):
            self.closed.append(request_id)
            raise


async def outputs(
    script: Script, gate: ScriptedGate, *, kind: RequestOutputKind = RequestOutputKind.DELTA, n: int = 1,
    engine: ScriptedEngine | None = None, **params: Any,
) -> tuple[list[RequestOutput], ScriptedEngine]:
    """Everything that the client yields for one request of the guarded tenant."""
    engine = engine or ScriptedEngine(script)
    client = GuardedEngineClient(engine, gate)
    token = CURRENT_REQUEST.set(RequestContext("r", ACME))
    try:
        stream = client.generate(
            {"type": "token", "prompt_token_ids": PROMPT}, SamplingParams(output_kind=kind, n=n, **params), "r-1"
        )
        return [output async for output in stream], engine
    finally:
        CURRENT_REQUEST.reset(token)


def text(found: list[RequestOutput], index: int = 0) -> str:
    """All text of one choice."""
    return "".join(choice.text for output in found for choice in output.outputs if choice.index == index)
