"""What a request may contain, per route: typed allow-lists of fields.

The body that goes to the engine is rebuilt from the allow-list, never forwarded: vLLM's own models accept any extra
field. Keys of tenants with a forget-list ("guarded") get the strict list; keys of tenants without one may also use
the parameters that only matter where something has to stay hidden (logprobs, token prompts, echo, grammars, tools);
edits of every request hold whatever a field says, so they do not make the list strict.
Nobody may send what addresses engine internals or other requests. Fields that OpenAI clients send and that mean
nothing here (`user`, `metadata`, ...) are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from guard.errors import RequestRefused
from guard.policy import MAX_CHOICES, Tenant
from guard.service.door import fields as check
from guard.service.door.fields import DROP, FIELD_NAME, ROLES, Check, refused

Route = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
ROUTES: tuple[Route, ...] = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
GUARDED_ROLES = ROLES - {"tool"}
MAX_TOKENS = 1 << 20
# every choice and every roll-back adds to the seed, and an engine dies of one that does not fit into 64 bits
MAX_SEED = 1 << 62
ZERO_WIDTH_SPACE = "\u200b"
_BRACKETED = re.compile(r"[<\[].*[>\]]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Field:
    """How one field is checked; `guarded` says whether keys of guarded tenants may send it."""

    check: Check
    guarded: bool = True


@dataclass(frozen=True, slots=True)
class RuleContext:
    """What the rules need to know about the server: served model names and texts of special tokens."""

    models: tuple[str, ...]
    special_texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ruled:
    """A rebuilt body, the number of generations it will start, and its field that holds the prompt."""

    body: dict[str, Any]
    prompts: int
    prompt_field: str


def apply_rules(route: Route, body: dict[str, Any], tenant: Tenant, context: RuleContext) -> Ruled:
    """Rebuild `body` from the allow-list of `route`. Raises RequestRefused (400, or 404 for the model)."""
    fields = FIELDS[route]
    rebuilt: dict[str, Any] = {}
    for name, value in body.items():
        field = fields.get(name)
        if field is None:
            raise refused("Unknown or unsupported field.", name if FIELD_NAME.match(name) else None, "unknown_field")
        if value is None:
            continue
        if tenant.listed and not field.guarded:
            # an explicit "off" is what clients send by default
            if value is False or value in ([], {}) or (name == "tool_choice" and value == "none"):
                continue
            raise refused("This field is not available for this key.", name, "unsupported_field")
        checked = field.check(value, name)
        if checked is not DROP:
            rebuilt[name] = checked
    rebuilt["model"] = _model(rebuilt.get("model"), context)
    return _finish(route, rebuilt, tenant, context)


def _finish(route: Route, body: dict[str, Any], tenant: Tenant, context: RuleContext) -> Ruled:
    key = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/responses": "input"}[route]
    if key not in body:
        raise refused("This field is required.", key, "missing_field")
    prompts = 1
    if route == "/v1/completions":
        prompt = body["prompt"]
        token_prompt = not isinstance(prompt, str) and not isinstance(prompt[0], str)
        if tenant.listed and token_prompt:
            raise refused("The prompt must be text.", "prompt")
        prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    if body.get("n", 1) > tenant.policy.max_choices:
        raise refused(f"At most {tenant.policy.max_choices} choices can be asked for.", "n")
    if "stream_options" in body and not body.get("stream"):
        raise refused("This field needs `stream`.", "stream_options")
    if tenant.listed:
        _check_turns(body, key)
        body[key] = _without_special(body[key], context.special_texts)
        if "instructions" in body:
            body["instructions"] = _without_special(body["instructions"], context.special_texts)
    if route == "/v1/responses":
        body["store"] = False
    return Ruled(body, prompts, key)


def _check_turns(body: dict[str, Any], key: str) -> None:
    turns = body[key]
    if key == "prompt" or isinstance(turns, str):
        return
    for position, turn in enumerate(turns):
        if turn["role"] not in GUARDED_ROLES:
            raise refused("This role is not available for this key.", f"{key}[{position}].role")
    # a trailing assistant turn would prefill the answer
    if turns[-1]["role"] == "assistant":
        raise refused("The last message must not be the assistant's.", f"{key}[{len(turns) - 1}].role")


def _without_special(value: Any, special_texts: Sequence[str]) -> Any:
    """Split special tokens typed as text by a zero-width space, so that they cannot forge turns."""
    if isinstance(value, str):
        for text in special_texts:
            if text and text in value:
                value = value.replace(text, text[0] + ZERO_WIDTH_SPACE + text[1:])
        return value
    if isinstance(value, list):
        return _apart([_without_special(item, special_texts) for item in value], special_texts)
    if isinstance(value, dict):
        return {
            name: _without_special(item, special_texts) if name in ("content", "text") else item
            for name, item in value.items()
        }
    return value


def _apart(items: list[Any], special_texts: Sequence[str]) -> list[Any]:
    """Keep text parts of one message apart where they would join to a special token: some templates concatenate."""
    texts = [item["text"] for item in items if isinstance(item, dict) and "text" in item]
    joined = "".join(texts)
    if len(texts) != len(items) or not any(text and text in joined for text in special_texts):
        return items
    return [items[0], *({**item, "text": ZERO_WIDTH_SPACE + item["text"]} for item in items[1:])]


def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """What a tokenizer reads as one control token: its special tokens and added tokens in brackets, longest first.

    `all_special_tokens` alone is not enough: it leaves out added tokens without a role, such as `<|start_header_id|>`.
    """
    added = tokenizer.added_tokens_decoder.values()
    found = {str(text) for text in tokenizer.all_special_tokens}
    found |= {token.content for token in added if token.special or _BRACKETED.fullmatch(token.content.strip())}
    return tuple(sorted(found, key=lambda text: (-len(text), text)))


def _model(name: str | None, context: RuleContext) -> str:
    if name is None:
        return context.models[0]
    if name not in context.models:
        raise RequestRefused("The model does not exist.", status=404, code="model_not_found", param="model")
    return name


_SAMPLING = {
    "model": Field(check.text),
    "temperature": Field(check.number(0, 2)),
    "top_p": Field(check.number(1e-6, 1)),
    "top_k": Field(check.integer(-1, 1 << 20)),
    "stream": Field(check.flag),
    "user": Field(check.drop),
    "metadata": Field(check.drop),
    "service_tier": Field(check.only("auto", "default")),
    "safety_identifier": Field(check.drop),
    "prompt_cache_key": Field(check.drop),
}
_GENERATION = {
    **_SAMPLING,
    "min_p": Field(check.number(0, 1)),
    "presence_penalty": Field(check.number(-2, 2)),
    "frequency_penalty": Field(check.number(-2, 2)),
    "repetition_penalty": Field(check.number(0.1, 10)),
    "seed": Field(check.integer(-MAX_SEED, MAX_SEED)),
    "n": Field(check.integer(1, MAX_CHOICES)),
    "stop": Field(check.stop_strings),
    "max_tokens": Field(check.integer(1, MAX_TOKENS)),
    "stream_options": Field(check.stream_options),
    "ignore_eos": Field(check.flag, guarded=False),
    "min_tokens": Field(check.integer(0, MAX_TOKENS), guarded=False),
}
FIELDS: dict[Route, dict[str, Field]] = {
    "/v1/chat/completions": {
        **_GENERATION,
        "messages": Field(check.messages),
        "max_completion_tokens": Field(check.integer(1, MAX_TOKENS)),
        "store": Field(check.only(False)),
        "modalities": Field(check.only(["text"])),
        "logprobs": Field(check.flag, guarded=False),
        "top_logprobs": Field(check.integer(0, 20), guarded=False),
        "response_format": Field(check.response_format, guarded=False),
        "tools": Field(check.tools, guarded=False),
        "tool_choice": Field(check.anything, guarded=False),
        "parallel_tool_calls": Field(check.drop),
    },
    "/v1/completions": {
        **_GENERATION,
        "prompt": Field(check.prompt),
        "best_of": Field(check.only(1)),
        "logprobs": Field(check.integer(0, 20), guarded=False),
        "echo": Field(check.flag, guarded=False),
    },
    "/v1/responses": {
        **_SAMPLING,
        "input": Field(check.responses_input),
        "instructions": Field(check.text),
        "max_output_tokens": Field(check.integer(1, MAX_TOKENS)),
        "store": Field(check.only(False)),
        "background": Field(check.only(False)),
        "truncation": Field(check.only("disabled")),
        "text": Field(check.text_options),
        "parallel_tool_calls": Field(check.drop),
        "tools": Field(check.only([])),
        "tool_choice": Field(check.only("auto", "none")),
    },
}
