"""Request rules: every field that can go round the guard is refused, and nothing unknown is ever forwarded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import RequestRefused
from guard.policy import MAX_CHOICES, STORED, Policy, Tenant, TenantSpec, tenant_of
from guard.service.door.rules import FIELDS, MAX_SEED, ROUTES, apply_rules
from tests.service.door.ruled_bodies import BODIES, CHAT, CONTEXT, GUARDED, OPEN, ruled

# fields of vLLM's own request models that nobody may send
NEVER = {
    "kv_transfer_params": {"prompt_token_ids": [1, 2, 3]},
    "ec_transfer_params": {"x": 1},
    "vllm_xargs": {"guard": "forged"},
    "extra_args": {"guard": "forged"},
    "prompt_embeds": "AAAA",
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False},
    "continue_final_message": True,
    "add_generation_prompt": False,
    "suffix": "tail",
    "truncate_prompt_tokens": 6,
    "truncation_side": "left",
    "add_special_tokens": True,
    "mm_processor_kwargs": {"code_revision": "x"},
    "media_io_kwargs": {},
    "documents": [{"text": "x"}],
    "use_beam_search": True,
    "length_penalty": 1.0,
    "early_stopping": True,
    "prompt_logprobs": 0,
    "prompt_logprob_token_ids": [[1]],
    "logprob_token_ids": [1],
    "logit_bias": {"1": 100},
    "allowed_token_ids": [1],
    "bad_words": ["sorry"],
    "structured_outputs": {"choice": ["ALPHA-7"]},
    "guided_json": {},
    "stop_token_ids": [1],
    "include_stop_str_in_output": True,
    "thinking_token_budget": 5,
    "include_reasoning": True,
    "spaces_between_special_tokens": True,
    "return_tokens_as_token_ids": True,
    "return_token_ids": True,
    "return_prompt_text": True,
    "enable_response_messages": True,
    "trace_decode_token_ids": [1],
    "skip_reading_prefix_cache": True,
    "watermarking": False,
    "priority": -5,
    "data_parallel_rank": 1,
    "session_id": "a",
    "cache_salt": "victim",
    "request_id": "chosen",
    "previous_response_id": "resp_1",
    "previous_input_messages": [],
    "include": ["message.output_text.logprobs"],
    "repetition_detection": {"max_pattern_size": 3},
    "echoed": True,
    "skip_special_tokens": False,
}
# fields that only keys without a forget-list may send
OPEN_ONLY: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "logprobs": True,
        "top_logprobs": 5,
        "response_format": {"type": "json_object"},
        "ignore_eos": True,
        "min_tokens": 20,
        "tools": [{"type": "function", "function": {"name": "f", "description": "Ada"}}],
    },
    "/v1/completions": {"logprobs": 3, "echo": True, "ignore_eos": True, "min_tokens": 5},
    "/v1/responses": {},
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", sorted(NEVER))
@pytest.mark.parametrize("tenant", [OPEN, GUARDED], ids=["open", "guarded"])
def test_dangerous_field_is_refused_and_named(route: Any, name: str, tenant: Tenant) -> None:
    with pytest.raises(RequestRefused) as caught:
        ruled(route, tenant, **{name: NEVER[name]})
    assert (caught.value.status, caught.value.param) == (400, name)


@pytest.mark.parametrize(("route", "name"), [(route, name) for route in ROUTES for name in OPEN_ONLY[route]])
def test_probability_and_format_fields_need_a_key_without_a_list(route: Any, name: str) -> None:
    value = OPEN_ONLY[route][name]
    with pytest.raises(RequestRefused) as caught:
        ruled(route, GUARDED, **{name: value})
    assert caught.value.param == name
    assert ruled(route, OPEN, **{name: value})[name] == value


@pytest.mark.parametrize("value", [None, False, []])
def test_explicit_defaults_of_clients_are_accepted(value: Any) -> None:
    name = "tools" if value == [] else "logprobs"
    assert name not in ruled("/v1/chat/completions", **{name: value})


@pytest.mark.parametrize("value", [-1, 0, 1, True, "0"])
@pytest.mark.parametrize("tenant", [OPEN, GUARDED], ids=["open", "guarded"])
def test_probabilities_of_the_prompt_are_refused_whatever_the_number(value: Any, tenant: Tenant) -> None:
    for route in ROUTES:
        with pytest.raises(RequestRefused):
            ruled(route, tenant, prompt_logprobs=value)


@pytest.mark.parametrize(
    ("route", "changes"),
    [
        ("/v1/completions", {"logprobs": 0}),
        ("/v1/completions", {"echo": True, "logprobs": 0, "max_tokens": 1}),
        ("/v1/chat/completions", {"top_logprobs": 0}),
        ("/v1/chat/completions", {"tool_choice": {"type": "function", "function": {"name": "ALPHA"}}}),
        ("/v1/chat/completions", {"tool_choice": "required"}),
        ("/v1/chat/completions", {"response_format": {"type": "text"}}),
        ("/v1/chat/completions", {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
        ("/v1/chat/completions", {"response_format": {"type": "structural_tag"}}),
        ("/v1/chat/completions", {"n": 5}),
        ("/v1/completions", {"best_of": 2}),
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "schema": {"enum": ["ALPHA"]}}}}),
        ("/v1/responses", {"top_logprobs": 1}),
        ("/v1/responses", {"reasoning": {"effort": "high"}}),
    ],
)
def test_scores_grammars_and_many_draws_are_refused_for_guarded_keys(route: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused) as caught:
        ruled(route, GUARDED, **changes)
    assert caught.value.status == 400


@pytest.mark.parametrize("name", ["guided_regex", "guided_choice", "guided_grammar", "whitespace_pattern"])
def test_older_names_of_grammars_are_unknown_to_every_key(name: str) -> None:
    for tenant in (OPEN, GUARDED):
        with pytest.raises(RequestRefused):
            ruled("/v1/chat/completions", tenant, **{name: "A(LP)HA-7"})


def test_the_largest_seed_leaves_room_for_choices_and_rollbacks() -> None:
    from guard.engine.choice import _SEED_STEP

    largest = MAX_SEED + MAX_CHOICES + 1000 * _SEED_STEP
    assert largest < 1 << 63
    assert ruled("/v1/chat/completions", seed=MAX_SEED)["seed"] == MAX_SEED
    with pytest.raises(RequestRefused):
        ruled("/v1/chat/completions", seed=MAX_SEED + 1)


@pytest.mark.parametrize("model", ["other", "", "demo ", "adapter"])
def test_unknown_model_is_404(model: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        ruled("/v1/chat/completions", model=model)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_model_is_filled_in() -> None:
    assert apply_rules("/v1/responses", {"input": "x"}, OPEN, CONTEXT).body["model"] == "demo"


def test_choices_are_limited_by_policy() -> None:
    two = tenant_of(TenantSpec(name="two", policy=Policy(max_choices=2)), 3)
    assert ruled("/v1/chat/completions", two, n=2)["n"] == 2
    with pytest.raises(RequestRefused):
        ruled("/v1/chat/completions", two, n=3)


def test_choices_are_limited_for_every_policy() -> None:
    wide = Policy.model_validate({"max_choices": 64}, context=STORED)
    many = tenant_of(TenantSpec(name="many", policy=wide), 3)
    assert ruled("/v1/chat/completions", many, n=MAX_CHOICES)["n"] == MAX_CHOICES
    with pytest.raises(RequestRefused):
        ruled("/v1/chat/completions", many, n=MAX_CHOICES + 1)


def test_responses_are_never_stored() -> None:
    assert ruled("/v1/responses")["store"] is False
    refused: dict[str, Any] = {"store": True, "background": True, "truncation": "auto", "tools": [{"type": "mcp"}]}
    for name, value in refused.items():
        with pytest.raises(RequestRefused):
            ruled("/v1/responses", **{name: value})


def test_identity_fields_are_dropped() -> None:
    body = ruled("/v1/chat/completions", user="tenant-x", metadata={"tenant": "open"}, service_tier="auto", store=False)
    assert not {"user", "metadata", "service_tier", "store"} & set(body)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", -1),
        ("top_p", 0),
        ("n", 0),
        ("n", 1.5),
        ("n", 17),
        ("stream", 1),
        ("max_tokens", -1),
        ("seed", 1 << 63),
        ("stop", [""]),
        ("stop", ["a"] * 5),
        ("stop", 3),
        ("stream_options", {"include_usage": 1}),
        ("stream_options", {"x": True}),
    ],
)
def test_wrong_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(RequestRefused) as caught:
        ruled("/v1/chat/completions", **{name: value})
    assert str(caught.value.param).startswith(name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)


@given(
    route=st.sampled_from(ROUTES),
    tenant=st.sampled_from([OPEN, GUARDED]),
    names=st.lists(
        st.sampled_from(sorted({*NEVER, *FIELDS[ROUTES[0]], *FIELDS[ROUTES[2]], "messages", "prompt"})) | st.text()
    ),
    data=st.data(),
)
def test_any_body_is_refused_or_rebuilt_from_the_list(route: Any, tenant: Tenant, names: list[str], data: Any) -> None:
    body = {**BODIES[route], **{name: data.draw(JSON) for name in names}}
    try:
        rebuilt = apply_rules(route, body, tenant, CONTEXT).body
    except RequestRefused as error:
        assert error.status in (400, 404)
        return
    allowed = {name for name, field in FIELDS[route].items() if field.guarded or not tenant.guarded}
    assert set(rebuilt) <= allowed | {"store"}


def test_every_allowed_field_exists_in_vllm() -> None:
    chat = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol").ChatCompletionRequest
    completion = pytest.importorskip("vllm.entrypoints.openai.completion.protocol").CompletionRequest
    responses = pytest.importorskip("vllm.entrypoints.openai.responses.protocol").ResponsesRequest
    for route, model in zip(ROUTES, (chat, completion, responses), strict=True):
        forwarded = set(ruled(route)) | {"temperature", "top_p", "top_k", "stream"}
        assert forwarded <= set(model.model_fields)


def test_edits_of_every_request_do_not_make_the_list_strict() -> None:
    policy = Policy.model_validate({"edits": [{"pack": "calm", "when": "always"}]})
    styled = tenant_of(TenantSpec(name="styled", policy=policy), 3)
    assert styled.guarded
    body = {**CHAT, "logprobs": True, "top_logprobs": 2}
    assert apply_rules("/v1/chat/completions", body, styled, CONTEXT).body["logprobs"] is True
    with pytest.raises(RequestRefused):
        apply_rules("/v1/chat/completions", body, GUARDED, CONTEXT)
