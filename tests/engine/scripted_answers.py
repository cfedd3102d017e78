"""Answers that follow a script: a gate and an engine for the tests of the engine client.

The engine is a function from (tokens so far, constraint on or off) to the pieces it would say next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine.admission import CURRENT_REQUEST, Admission, OutputCheck, RequestContext
from guard.engine.client import GuardedEngineClient
from guard.errors import RequestRefused
from guard.plan import Constraint, Plan
from guard.policy import Target, TenantSpec, tenant_of

ACME = tenant_of(TenantSpec(name="acme", targets=(Target(name="Ada"),)), 2)
OPEN = tenant_of(TenantSpec(name="open"), 1)
PROMPT = [11, 12, 13]
Script = Callable[[Sequence[int], bool], list[str]]


class ScriptedGate:
    """Admits everything with `patterns`; a resumed request has the constraint on."""

    def __init__(
        self, patterns: tuple[str, ...], *, max_rollbacks: int = 2, refuse: bool = False,
        similar: Callable[[str], bool] | None = None,
    ) -> None:
        self.similar_to, self.compared = similar, list[str]()
        self.patterns, self.max_rollbacks, self.refuse = patterns, max_rollbacks, refuse
        self.counts = {"held_back": 0, "rollbacks": 0, "filtered": 0}
        self.finished = 0
        self.resumed: list[list[int]] = []

    def _admission(self, token_ids: Sequence[int], *, constrained: bool, salt: str) -> Admission:
        rule = Constraint(digest="d", start=0) if constrained else None
        plan = Plan(tenant_index=2, policy_version="v", prompt_length=len(token_ids), constraint=rule)
        targets = () if self.similar_to is None else (0,)
        return Admission(plan, "ticket", salt, OutputCheck(self.patterns, frozenset(), "", self.max_rollbacks, targets))

    async def similar(self, context: RequestContext, admission: Admission, sentence: str) -> bool:
        await asyncio.sleep(0)
        self.compared.append(sentence)
        return self.similar_to is not None and self.similar_to(sentence)

    def admit_now(self, context: RequestContext, token_ids: Sequence[int]) -> Admission | None:
        if context.tenant.guarded:
            return None
        return Admission(Plan(tenant_index=1, policy_version="v", prompt_length=len(token_ids)), "open-ticket", "salt")

    async def admit(self, context: RequestContext, token_ids: Sequence[int]) -> Admission:
        if self.refuse:
            raise RequestRefused("no", code="content_filter")
        return self._admission(token_ids, constrained=False, salt="salt")

    async def resume(self, context: RequestContext, admission: Admission, token_ids: Sequence[int]) -> Admission:
        self.resumed.append(list(token_ids))
        return self._admission(token_ids, constrained=True, salt="salt")

    def finish(self, context: RequestContext, admission: Admission) -> None:
        self.finished += 1

    def count_output(self, context: RequestContext, **counts: int) -> None:
        for name, value in counts.items():
            self.counts[name] += value


class ScriptedEngine:
    """Says what `script` says, one token a piece; remembers the requests and which of them were closed early."""

    def __init__(self, script: Script) -> None:
        self.script = script
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
    script: Script, gate: ScriptedGate, *, kind: RequestOutputKind = RequestOutputKind.DELTA, n: int = 1, **params: Any
) -> tuple[list[RequestOutput], ScriptedEngine]:
    """Everything that the client yields for one request of the guarded tenant."""
    engine = ScriptedEngine(script)
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
