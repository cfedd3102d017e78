"""Checks of single fields: each takes a JSON value and the field's place, and returns what the engine gets.

A check raises RequestRefused that names the place, or returns DROP for a field that means nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from guard.errors import RequestRefused

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
MAX_MESSAGES = 512
MAX_PROMPTS = 8
MAX_STOP_STRINGS = 4
FIELD_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")
DROP = object()

Check = Callable[[Any, str], Any]


def refused(message: str, param: str | None, code: str = "invalid_value") -> RequestRefused:
    """A 400 that names the field."""
    return RequestRefused(message, code=code, param=param)


def text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise refused("Must be a string.", name)
    return value


def flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise refused("Must be true or false.", name)
    return value


def only(*allowed: Any) -> Check:
    def check(value: Any, name: str) -> Any:
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise refused("This value is not supported.", name)
        return DROP

    return check


def drop(_: Any, __: str) -> Any:
    return DROP


def number(low: float, high: float) -> Check:
    def check(value: Any, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise refused(f"Must be a number between {low:g} and {high:g}.", name)
        return value

    return check


def integer(low: int, high: int) -> Check:
    def check(value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise refused(f"Must be an integer between {low} and {high}.", name)
        return value

    return check


def stop_strings(value: Any, name: str) -> list[str]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or len(strings) > MAX_STOP_STRINGS:
        raise refused(f"Must be a string or at most {MAX_STOP_STRINGS} strings.", name)
    if any(not isinstance(text, str) or not 0 < len(text) <= 256 for text in strings):
        raise refused("Stop strings have 1 to 256 characters.", name)
    return strings


def stream_options(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) - {"include_usage", "continuous_usage_stats"}:
        raise refused("Only `include_usage` is supported.", name)
    return {key: flag(one, f"{name}.{key}") for key, one in value.items()}


def content(value: Any, name: str, part_type: str) -> Any:
    """A string, or a list of text parts (rebuilt; `part_type` is the route's name for one)."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise refused("Must be a string or a list of text parts.", name)
    parts = []
    for position, part in enumerate(value):
        place = f"{name}[{position}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in TEXT_PARTS:
            raise refused("Only text parts are supported.", f"{place}.type")
        if set(part) - {"type", "text", "annotations", "logprobs"}:
            raise refused("Unknown or unsupported field.", place, "unknown_field")
        parts.append({"type": part_type or kind, "text": text(part.get("text"), f"{place}.text")})
    return parts


def messages(value: Any, name: str) -> list[dict[str, Any]]:
    return turns(value, name, {"role", "content", "name", "refusal"}, "text")


def turns(value: Any, name: str, allowed: set[str], part_type: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        raise refused(f"Must be a list of 1 to {MAX_MESSAGES} messages.", name)
    turns = []
    for position, turn in enumerate(value):
        place = f"{name}[{position}]"
        if not isinstance(turn, dict):
            raise refused("Must be an object.", place)
        unknown = sorted(key for key in set(turn) - allowed if turn[key] is not None)
        if unknown:
            known_shape = unknown[0] if FIELD_NAME.match(unknown[0]) else ""
            raise refused("Unknown or unsupported field.", f"{place}.{known_shape}".rstrip("."), "unknown_field")
        if not isinstance(turn.get("role"), str) or turn["role"] not in ROLES:
            raise refused("Unknown role.", f"{place}.role")
        kind = part_type if turn["role"] != "assistant" or part_type == "text" else "output_text"
        said = _with_refusals(turn, place) if turn["role"] == "assistant" else turn.get("content")
        turns.append({"role": turn["role"], "content": content(said, f"{place}.content", kind)})
    return turns


def _with_refusals(turn: dict[str, Any], place: str) -> Any:
    """What an assistant's turn said; a refusal, which clients send back as it came, is text to the model."""
    said = turn.get("content")
    if said is None and turn.get("refusal") is not None:
        return text(turn["refusal"], f"{place}.refusal")
    if not isinstance(said, list):
        return said
    return [
        {"type": "text", "text": text(part.get("refusal"), f"{place}.content[{position}].refusal")}
        if isinstance(part, dict) and part.get("type") == "refusal" and set(part) == {"type", "refusal"} else part
        for position, part in enumerate(said)
    ]


def prompt(value: Any, name: str) -> Any:
    """Text, token ids, or a list of either."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value:
        if all(isinstance(item, str) and item for item in value) and len(value) <= MAX_PROMPTS:
            return value
        if token_list(value) or (len(value) <= MAX_PROMPTS and all(token_list(item) for item in value)):
            return value
    raise refused(f"Must be text or a list of at most {MAX_PROMPTS} texts.", name)


def token_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 31 for item in value
    )


def responses_input(value: Any, name: str) -> Any:
    if isinstance(value, str) and value:
        return value
    items = value if isinstance(value, list) else [value]
    for position, item in enumerate(items):
        if isinstance(item, dict) and item.get("type", "message") != "message":
            raise refused("Only messages are supported.", f"{name}[{position}].type")
    kept = [
        {key: one for key, one in item.items() if key not in ("type", "id") and (key, one) != ("status", "completed")}
        if isinstance(item, dict) else item
        for item in items
    ]
    return [{"type": "message", **turn} for turn in turns(kept, name, {"role", "content"}, "input_text")]


def text_format(value: Any, name: str) -> Any:
    if value == {"type": "text"}:
        return DROP
    raise refused("Only the format `text` is supported.", name)


def text_options(value: Any, name: str) -> Any:
    if isinstance(value, dict) and not set(value) - {"format", "verbosity"}:
        return text_format(value.get("format", {"type": "text"}), f"{name}.format")
    raise refused("Only the format `text` is supported.", name)


def response_format(value: Any, name: str) -> Any:
    if isinstance(value, dict) and value.get("type") in ("json_schema", "json_object", "text"):
        return value
    raise refused("Unknown format.", name)


def tools(value: Any, name: str) -> Any:
    if isinstance(value, list) and all(isinstance(tool, dict) and tool.get("type") == "function" for tool in value):
        return value
    raise refused("Must be a list of function tools.", name)


def anything(value: Any, _: str) -> Any:
    return value
