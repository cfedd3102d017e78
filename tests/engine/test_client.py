"""The client's door: what is refused before the engine hears of it, and what an open tenant's request becomes."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams

from guard.engine.admission import CURRENT_REQUEST, RequestContext
from guard.engine.client import GuardedEngineClient
from guard.errors import RequestRefused
from tests.engine.scripted_answers import OPEN, PROMPT, ScriptedEngine, ScriptedGate


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
