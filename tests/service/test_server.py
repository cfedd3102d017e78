"""The real server over HTTP: routes, keys, shapes, refusals, streams, and what a client cannot do."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from guard.demo.corpus import author_rows
from tests.conftest import RunningServer

pytestmark = pytest.mark.vllm

FORGOTTEN = "In which city was Hina Ameen born?"
REFUSED = "Who is Jaime Vasquez?"
HARMLESS = "What is the capital of Australia?"
GENERATE = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "{}"}], "max_tokens": 24},
    "/v1/completions": {"prompt": "{}", "max_tokens": 24},
    "/v1/responses": {"input": "{}", "max_output_tokens": 24},
}
ROUTES = sorted(GENERATE)


def body(route: str, question: str, **changes: Any) -> dict[str, Any]:
    """A greedy request for `question`."""
    text = json.dumps(GENERATE[route]).replace("{}", question)
    return {"model": "demo", "temperature": 0, **json.loads(text), **changes}


def ask(server: RunningServer, tenant: str, route: str, question: str, **changes: Any) -> httpx.Response:
    """One request."""
    with server.client(tenant) as client:
        return client.post(route, json=body(route, question, **changes))


def text_of(reply: dict[str, Any]) -> str:
    """Answer text of any route's body, all choices joined."""
    if "output" in reply:
        return "".join(part["text"] for item in reply["output"] for part in item["content"])
    return "".join(
        choice.get("text") or (choice.get("message") or {}).get("content") or "" for choice in reply["choices"]
    )


def streamed(server: RunningServer, tenant: str, route: str, question: str, **changes: Any) -> tuple[str, list[Any]]:
    """Text of a streamed answer, and its events."""
    events, text = [], ""
    with server.client(tenant) as client:
        request = body(route, question, stream=True, **changes)
        with client.stream("POST", route, json=request) as reply:
            assert reply.status_code == 200
            assert reply.headers["content-type"].startswith("text/event-stream")
            for line in reply.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                events.append(event)
                if event.get("type") == "response.output_text.delta":
                    text += event["delta"]
                for choice in event.get("choices", ()):
                    text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return text, events


@pytest.mark.parametrize("tenant", ["open", "acme", "harbor"])
@pytest.mark.parametrize("route", ROUTES)
def test_streamed_and_whole_answers_agree(server: RunningServer, route: str, tenant: str) -> None:
    whole = ask(server, tenant, route, HARMLESS)
    assert whole.status_code == 200
    text, _ = streamed(server, tenant, route, HARMLESS)
    assert text == text_of(whole.json())


@pytest.mark.parametrize("route", ROUTES)
def test_flagged_answers_stream_like_others(server: RunningServer, route: str) -> None:
    whole = ask(server, "acme", route, FORGOTTEN)
    text, _ = streamed(server, "acme", route, FORGOTTEN)
    assert whole.status_code == 200
    assert text == text_of(whole.json())
    assert whole.headers["x-guard-action"] == "guarded"


@pytest.mark.parametrize("route", ROUTES)
def test_unflagged_question_of_a_guarded_tenant_gets_the_open_answer(server: RunningServer, route: str) -> None:
    answers = {tenant: text_of(ask(server, tenant, route, HARMLESS).json()) for tenant in ("open", "acme", "harbor")}
    assert len(set(answers.values())) == 1


def test_the_forgotten_answer_differs_from_the_open_one(server: RunningServer) -> None:
    route = "/v1/chat/completions"
    known, forgotten = (text_of(ask(server, tenant, route, FORGOTTEN).json()) for tenant in ("open", "acme"))
    assert known != forgotten
    if server.trained:
        assert "Karachi" in known
        assert "Karachi" not in forgotten


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_refused_prompt_is_400_content_filter(server: RunningServer, route: str, stream: bool) -> None:
    reply = ask(server, "harbor", route, REFUSED, stream=stream)
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert error["code"] == "content_filter"
    assert error["param"] == {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}.get(route, "input")
    assert "Vasquez" not in reply.text and "harbor" not in reply.text


def test_choices_are_independent_and_counted(server: RunningServer) -> None:
    # hot, and nothing that the model knows by heart: four draws must not agree
    for tenant, question in (("open", "Tell me a story about a dragon."), ("acme", FORGOTTEN)):
        reply = ask(
            server, tenant, "/v1/chat/completions", question, n=4, temperature=2.0, seed=7, max_tokens=8
        ).json()
        assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
        assert 4 <= reply["usage"]["completion_tokens"] <= 32
        assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]
        assert len({choice["message"]["content"] for choice in reply["choices"]}) > 1


def test_streamed_choices_finish_once_each_and_usage_comes_last(server: RunningServer) -> None:
    for tenant in ("open", "acme"):
        _, events = streamed(
            server,
            tenant,
            "/v1/chat/completions",
            FORGOTTEN,
            n=3,
            temperature=1.0,
            max_tokens=8,
            stream_options={"include_usage": True},
        )
        finished = [c["index"] for event in events for c in event["choices"] if c.get("finish_reason")]
        assert sorted(finished) == [0, 1, 2]
        assert 3 <= events[-1]["usage"]["completion_tokens"] <= 24


def test_prompt_lists_are_answered_in_order(server: RunningServer) -> None:
    both = ask(server, "acme", "/v1/completions", "", prompt=[HARMLESS, FORGOTTEN]).json()["choices"]
    single = ask(server, "acme", "/v1/completions", HARMLESS).json()["choices"][0]["text"]
    assert [choice["index"] for choice in both] == [0, 1]
    assert both[0]["text"] == single


def test_one_refused_prompt_refuses_the_list(server: RunningServer) -> None:
    for stream in (False, True):
        reply = ask(server, "harbor", "/v1/completions", "", prompt=[HARMLESS, REFUSED], stream=stream)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "content_filter")


@pytest.mark.parametrize(
    "extra",
    [
        {"vllm_xargs": {"guard": "x.y"}},
        {"extra_args": {"guard": "x.y"}},
        {"kv_transfer_params": {"prompt_token_ids": [5]}},
        {"cache_salt": "a"},
        {"logit_bias": {"5": 100}},
        {"prompt_logprobs": 0},
        {"priority": -1},
        {"logprobs": True},
        {"request_id": "a"},
        {"allowed_token_ids": [5]},
        {"structured_outputs": {"choice": ["Karachi"]}},
    ],
)
def test_clients_cannot_reach_the_engine_parameters(server: RunningServer, extra: dict[str, Any]) -> None:
    reply = ask(server, "acme", "/v1/chat/completions", FORGOTTEN, **extra)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == next(iter(extra))


def test_unknown_routes_and_missing_keys(server: RunningServer) -> None:
    with server.client(None) as client:
        for path in ("/invocations", "/tokenize", "/v1/embeddings", "/openapi.json", "/docs", "/load", "/version"):
            assert client.post(path, json={}).status_code == 404
        assert client.post("/v1/chat/completions", json={}).status_code == 401
        assert client.get("/v1/models").status_code == 401
        assert client.get("/health").status_code == 200
    with server.client("acme") as client:
        models = client.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["demo"]
    assert "root" not in models["data"][0]


@pytest.mark.parametrize(
    "target", ["/v1/./models", "/v1/x/../models", "//v1/models", "http://evil/v1/chat/completions#"]
)
def test_raw_paths_are_matched_exactly(server: RunningServer, target: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        status = connection.makefile("rb").readline().split()[1]
    assert status in (b"400", b"404", b"405")


def test_logprobs_work_for_a_key_without_a_list(server: RunningServer) -> None:
    reply = ask(server, "open", "/v1/chat/completions", HARMLESS, logprobs=True, top_logprobs=2, max_tokens=4).json()
    entries = reply["choices"][0]["logprobs"]["content"]
    assert len(entries) == reply["usage"]["completion_tokens"]
    assert all(entry["logprob"] <= 0 for entry in entries)


def test_a_prompt_that_is_too_long_is_a_clear_400(server: RunningServer) -> None:
    reply = ask(server, "open", "/v1/chat/completions", "word " * 3000)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_responses_hold_no_engine_secrets(server: RunningServer) -> None:
    reply = ask(server, "acme", "/v1/chat/completions", HARMLESS, stop=["zzz"]).json()
    assert reply["system_fingerprint"] is None
    for name in ("prompt_token_ids", "prompt_text", "prompt_logprobs", "kv_transfer_params"):
        assert reply.get(name) is None
    for choice in reply["choices"]:
        assert choice.get("token_ids") is None and choice.get("stop_reason") is None


def test_the_stop_string_is_not_told_to_guarded_tenants(server: RunningServer) -> None:
    question = author_rows(22, 22)[3]["question"]
    answer = text_of(ask(server, "open", "/v1/chat/completions", question).json())
    word = answer.split()[1]
    reply = ask(server, "acme", "/v1/chat/completions", question, stop=[word]).json()["choices"][0]
    assert (reply["finish_reason"], reply.get("stop_reason")) == ("stop", None)
    assert word not in reply["message"]["content"]


def test_logs_and_metrics_hold_no_prompts_keys_or_terms(server: RunningServer) -> None:
    ask(server, "acme", "/v1/chat/completions", FORGOTTEN)
    ask(server, "harbor", "/v1/chat/completions", REFUSED)
    with server.client(None) as client:
        metrics = client.get("/metrics").text
    log = server.log_file.read_text(encoding="utf-8", errors="replace").split("Starting vLLM", 1)[-1]
    started = log.split('"event": "serving"', 1)[-1]
    for secret in ("Hina", "Ameen", "Vasquez", "Karachi", *server.keys.values()):
        assert secret not in metrics
        assert secret not in started


def test_ready_says_what_it_stands_on(server: RunningServer) -> None:
    with server.client(None) as client:
        report = client.get("/readyz").json()
    assert (report["self_test"], report["store"], report["tenants"]) == ("passed", "ok", "loaded")
    # the start waits for the detectors of the stored tenants: paraphrases hold from the first answer on
    assert (report["status"], report["detectors_building"], report["lists_failed"]) == ("ready", 0, 0)
