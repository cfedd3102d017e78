"""A refused prompt that is answered with HTTP 200, read by OpenAI's own client."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from guard.errors import AnsweredRefusal
from guard.service.door.errors import content_filter_refusal
from tests.service.door.outermost_layer import CHAT, CHAT_PATH, Engine, bearer

pytest.importorskip("openai", reason="OpenAI's client comes with vLLM")

from openai import AsyncOpenAI  # noqa: E402

TEXT = "I can't help with that – désolé."
EVENTS = [
    "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    "response.refusal.delta", "response.refusal.done", "response.content_part.done", "response.output_item.done",
    "response.completed",
]


@pytest.fixture
def openai_client(client: httpx.AsyncClient, engine: Engine) -> AsyncOpenAI:
    """OpenAI's client of a server whose gate refuses every prompt with an answer."""
    engine.refuse = AnsweredRefusal(TEXT, prompt_tokens=7, param="messages")
    engine.answer = b"the engine's own words"
    transport: Any = client
    return AsyncOpenAI(api_key="key-acme", base_url="http://guard/v1", http_client=transport, max_retries=0)


async def test_chat_completions_refuse_in_the_message(openai_client: AsyncOpenAI) -> None:
    answer = await openai_client.chat.completions.create(model="demo", messages=[user("hello")], n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert (choice.message.refusal, choice.message.content, choice.finish_reason) == (TEXT, None, "stop")
        assert choice.message.role == "assistant"
    assert answer.usage is not None and answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7
    }
    assert answer.model == "demo" and answer.id.startswith("chatcmpl-") and answer.created > 1_700_000_000


async def test_a_streamed_chat_completion_refuses_piece_by_piece(openai_client: AsyncOpenAI) -> None:
    stream = await openai_client.chat.completions.create(
        model="demo", messages=[user("hello")], n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == 7
    for index in range(2):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant" and own[0].delta.content is None
        assert "".join(choice.delta.refusal or "" for choice in own) == TEXT
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["stop"]
        assert len(own) > 4


async def test_the_streaming_helper_collects_the_refusal(openai_client: AsyncOpenAI) -> None:
    async with openai_client.chat.completions.stream(model="demo", messages=[user("hello")]) as stream:
        kinds = [event.type async for event in stream]
        whole = await stream.get_final_completion()
    assert "refusal.delta" in kinds and "refusal.done" in kinds
    assert (whole.choices[0].message.refusal, whole.choices[0].message.content) == (TEXT, None)
    assert whole.usage is None


async def test_completions_refuse_in_the_text_of_every_choice(openai_client: AsyncOpenAI) -> None:
    answer = await openai_client.completions.create(model="demo", prompt=["one", "two"], n=2)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (index, TEXT, "stop") for index in range(4)
    ]
    assert answer.usage is not None and answer.usage.total_tokens == 7 and answer.id.startswith("cmpl-")


async def test_a_streamed_completion_ends_with_a_reason_and_done(
    openai_client: AsyncOpenAI, client: httpx.AsyncClient
) -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    stream = await openai_client.completions.create(model="demo", prompt="one", stream=True, extra_body=options)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert all(chunk.usage is not None and chunk.usage.prompt_tokens == 7 for chunk in chunks)
    reply = await client.post(
        "/v1/completions", json={"model": "demo", "prompt": "one", "stream": True}, headers=bearer("key-acme")
    )
    assert reply.text.endswith("data: [DONE]\n\n") and "usage" not in reply.text


async def test_responses_refuse_in_a_content_part(openai_client: AsyncOpenAI) -> None:
    answer = await openai_client.responses.create(model="demo", input="hello", instructions="be kind", temperature=0.5)
    (message,) = answer.output
    assert message.type == "message" and message.status == "completed"
    (part,) = message.content
    assert part.type == "refusal" and part.refusal == TEXT
    assert (answer.status, answer.output_text, answer.temperature) == ("completed", "", 0.5)
    assert answer.usage is not None and (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 0)
    assert answer.id.startswith("resp_") and message.id.startswith("msg_") and answer.instructions == "be kind"


async def test_streamed_responses_send_the_events_in_order(openai_client: AsyncOpenAI) -> None:
    stream = await openai_client.responses.create(model="demo", input="hello", stream=True)
    events = [event async for event in stream]
    assert list(dict.fromkeys(event.type for event in events)) == EVENTS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.refusal.delta"]
    assert len(deltas) > 3 and "".join(deltas) == TEXT
    last = events[-1]
    assert last.type == "response.completed" and last.response.status == "completed"
    items = {event.item_id for event in events if hasattr(event, "item_id")}
    assert items == {last.response.output[0].id}


async def test_the_responses_helper_collects_the_refusal(openai_client: AsyncOpenAI) -> None:
    async with openai_client.responses.stream(model="demo", input="hello") as stream:
        async for _ in stream:
            pass
        whole = await stream.get_final_response()
    assert whole.output[0].type == "message" and whole.output[0].content[0].type == "refusal"


async def test_a_refusal_can_be_sent_back_in_the_next_turn(
    openai_client: AsyncOpenAI, engine: Engine, client: httpx.AsyncClient
) -> None:
    answer = await openai_client.chat.completions.create(model="demo", messages=[user("hello")])
    response = await openai_client.responses.create(model="demo", input="hello")
    messages: list[Any] = [user("hello"), answer.choices[0].message, user("and now?")]
    await openai_client.chat.completions.create(model="demo", messages=messages)
    assert engine.bodies[-1]["messages"][1] == {"role": "assistant", "content": TEXT}
    turns: list[Any] = [user("hello"), *response.output, user("and now?")]
    await openai_client.responses.create(model="demo", input=turns)
    assert engine.bodies[-1]["input"][1]["content"] == [{"type": "output_text", "text": TEXT}]
    for role, said in (("user", "no"), ("assistant", 1)):
        turn = {"role": role, "content": [{"type": "refusal", "refusal": said}]}
        reply = await client.post(CHAT_PATH, json={**CHAT, "messages": [turn]}, headers=bearer("key-acme"))
        assert reply.status_code == 400 and reply.json()["error"]["param"].startswith("messages[0]")


@pytest.mark.parametrize("streamed", [False, True])
async def test_headers_are_those_of_any_answer(
    openai_client: AsyncOpenAI, client: httpx.AsyncClient, engine: Engine, streamed: bool
) -> None:
    headers = bearer("key-acme") | {"x-request-id": "mine-1"}
    refused = await client.post(CHAT_PATH, json={**CHAT, "stream": streamed}, headers=headers)
    engine.refuse = None
    answered = await client.post(CHAT_PATH, json={**CHAT, "stream": streamed}, headers=headers)
    assert refused.status_code == 200 and "engine" not in refused.text
    kind = "text/event-stream; charset=utf-8" if streamed else "application/json"
    assert refused.headers["content-type"] == kind
    for name in ("x-request-id", "x-guard-action", "x-guard-policy-version"):
        assert refused.headers[name] == answered.headers[name]
    assert refused.headers["x-request-id"] == "mine-1" and refused.headers["x-guard-action"] == "guarded"


async def test_the_first_refusal_of_several_prompts_is_the_response(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    engine.refuse = content_filter_refusal("prompt", "Not here.")
    reply = await client.post(
        "/v1/completions", json={"model": "demo", "prompt": ["one", "two"]}, headers=bearer("key-acme")
    )
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["message"]) == (400, "content_filter", "Not here.")


def user(text: str) -> Any:
    """A turn of the user."""
    return {"role": "user", "content": text}
