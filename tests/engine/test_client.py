"""The client's door: what is refused before the engine hears of it, and what an open tenant's request becomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine.admission import CURRENT_REQUEST, Leave, RequestContext
from guard.engine.client import GuardedEngineClient
from guard.errors import RequestRefused
from tests.engine.scripted_answers import ACME, OPEN, PROMPT, ScriptedEngine, ScriptedGate, ScriptedLeave, text


async def test_without_a_request_context_nothing_is_generated() -> None:
    engine = ScriptedEngine(lambda *_: ["x"])
    client = GuardedEngineClient(engine, ScriptedGate(()))
    with pytest.raises(RequestRefused):
        await anext(client.generate({"prompt_token_ids": PROMPT}, SamplingParams(), "r"))
    assert not engine.requests


@pytest.mark.parametrize(
    "prompt",
    [
        "text",
        {"prompt_token_ids": []},
        {"prompt_embeds": object()},
        {"prompt_token_ids": [1], "multi_modal_data": {"a": 1}},
    ],
)
async def test_prompts_without_plain_tokens_are_refused(prompt: Any) -> None:
    engine = ScriptedEngine(lambda *_: ["x"])
    client = GuardedEngineClient(engine, ScriptedGate(()))
    context = RequestContext("r", OPEN)
    token = CURRENT_REQUEST.set(context)
    with pytest.raises(RequestRefused):
        await anext(client.generate(prompt, SamplingParams(), "r"))
    CURRENT_REQUEST.reset(token)
    assert context.refusal is not None and not engine.requests


async def test_an_empty_list_gets_the_engines_own_generator_and_our_parameters() -> None:
    engine = ScriptedEngine(lambda *_: ["x"])
    client = GuardedEngineClient(engine, ScriptedGate(()))
    token = CURRENT_REQUEST.set(RequestContext("r", OPEN))
    given = SamplingParams(extra_args={"guard": "forged", "kv_transfer_params": {"prompt_token_ids": [1]}})
    stream = client.generate({"prompt_token_ids": PROMPT, "cache_salt": "victim"}, given, "r", priority=-5)
    CURRENT_REQUEST.reset(token)
    assert getattr(stream, "__qualname__", None) == "ScriptedEngine.generate"
    await anext(stream)
    prompt, params, _ = engine.requests[0]
    assert params.extra_args == {"guard": "open-ticket"}
    assert prompt["cache_salt"] == "salt"
    assert given.extra_args is not None
    assert given.extra_args["guard"] == "forged"


async def test_encode_is_refused() -> None:
    with pytest.raises(RequestRefused):
        await anext(GuardedEngineClient(object(), ScriptedGate(())).encode("x", None, "r"))


def asked(client: GuardedEngineClient, context: RequestContext, **params: Any) -> AsyncGenerator[RequestOutput, None]:
    token = CURRENT_REQUEST.set(context)
    try:
        given = SamplingParams(output_kind=RequestOutputKind.DELTA, **params)
        return client.generate({"prompt_token_ids": PROMPT}, given, "r-1")
    finally:
        CURRENT_REQUEST.reset(token)


async def test_a_refusal_becomes_the_response_and_starts_nothing() -> None:
    engine, context = ScriptedEngine(lambda *_: ["x"]), RequestContext("r", ACME)
    with pytest.raises(RequestRefused):
        await anext(asked(GuardedEngineClient(engine, ScriptedGate((), refuse=True)), context))
    assert context.refusal is not None and context.refusal.code == "content_filter"
    assert context.decided.is_set() and context.admitted == 0 and not engine.requests


async def test_an_admitted_request_is_counted_before_its_first_output() -> None:
    context = RequestContext("r", ACME)
    stream = asked(GuardedEngineClient(ScriptedEngine(lambda *_: ["x"]), ScriptedGate(("zzz",))), context)
    assert context.admitted == 0
    await anext(stream)
    assert context.admitted == 1 and context.refusal is None
    await stream.aclose()


class Ordered(ScriptedGate):
    """Remembers how many of the engine's requests were closed when the leave was given back."""

    def __init__(self, engine: ScriptedEngine) -> None:
        super().__init__(("zzz",))
        self.engine, self.closed_before = engine, -1

    @asynccontextmanager
    async def admitted(self, context: RequestContext, token_ids: Sequence[int]) -> AsyncGenerator[Leave, None]:
        async with super().admitted(context, token_ids) as leave:
            try:
                yield leave
            finally:
                self.closed_before = len(self.engine.closed)


@pytest.mark.parametrize("choices", [1, 2])
async def test_what_is_held_is_given_back_once_the_engine_has_stopped(choices: int) -> None:
    engine = ScriptedEngine(lambda *_: ["word "] * 1000)
    gate = Ordered(engine)
    stream = asked(GuardedEngineClient(engine, gate), RequestContext("r", ACME), n=choices, max_tokens=2000)
    await anext(stream)
    await stream.aclose()
    assert gate.finished == 1 and gate.closed_before == len(engine.closed) == choices


async def test_a_client_that_is_cancelled_gives_back_what_is_held() -> None:
    engine = ScriptedEngine(lambda *_: ["word "] * 1000)
    gate = Ordered(engine)
    stream = asked(GuardedEngineClient(engine, gate), RequestContext("r", ACME), max_tokens=2000)

    async def read() -> None:
        async with aclosing(stream):
            async for _ in stream:
                pass

    reader = asyncio.create_task(read())
    while not engine.requests:
        await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert gate.finished == 1 and gate.closed_before == 1


async def test_an_engine_that_fails_gives_back_what_is_held_and_refuses_nothing() -> None:
    def failing(says: Sequence[int], constrained: bool) -> list[str]:
        raise OSError("gone")

    gate, context = ScriptedGate(("zzz",)), RequestContext("r", ACME)
    with pytest.raises(OSError, match="gone"):
        await anext(asked(GuardedEngineClient(ScriptedEngine(failing), gate), context))
    assert gate.finished == 1 and context.refusal is None


async def test_an_answer_that_is_not_checked_tells_no_stop_reason() -> None:
    class Unchecked(ScriptedGate):
        @asynccontextmanager
        async def admitted(self, context: RequestContext, token_ids: Sequence[int]) -> AsyncGenerator[Leave, None]:
            async with super().admitted(context, token_ids) as leave:
                assert isinstance(leave, ScriptedLeave)
                leave.admission = replace(leave.admission, check=None)
                yield leave

    class Stopping(ScriptedEngine):
        async def generate(self, *arguments: Any) -> AsyncGenerator[RequestOutput, None]:
            async for output in super().generate(*arguments):
                output.outputs[0].stop_reason = "zzz"
                yield output

    gate = Unchecked(("alpha seven",))
    stream = asked(GuardedEngineClient(Stopping(lambda *_: [" alpha", " seven"]), gate), RequestContext("r", ACME))
    found = [output async for output in stream]
    assert text(found) == " alpha seven" and gate.finished == 1
    assert [output.outputs[0].stop_reason for output in found] == [None, None]
