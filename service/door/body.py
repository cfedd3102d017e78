"""Strict JSON of a request body: what the guard reads is exactly what the engine will read.

UTF-8 without byte order mark, no duplicate keys, no NaN or infinity, no lone surrogates, at most 32 levels deep.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from guard.errors import RequestRefused

MAX_DEPTH = 32


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises RequestRefused (400)."""
    if body.startswith(b"\xef\xbb\xbf"):
        raise _refused("must not begin with a byte order mark")
    try:
        text = body.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise _refused("must be UTF-8") from error
    _check_depth(text)
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite_float
        )
    except RequestRefused:
        raise
    except (ValueError, RecursionError) as error:
        raise _refused("must be valid JSON") from error
    if not isinstance(value, dict):
        raise _refused("must be a JSON object")
    _check_text(value)
    return value


def serialise(value: dict[str, Any]) -> bytes:
    """The body that the engine gets."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _refused(problem: str) -> RequestRefused:
    return RequestRefused(f"The request body {problem}.", code="invalid_body")


def _check_depth(text: str) -> None:
    """Linear scan before the recursive parser sees the text."""
    depth, in_string, escaped = 0, False, False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _refused(f"is nested more than {MAX_DEPTH} levels deep")
        elif character in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _refused("has a key twice")
    return found


def _refuse_constant(_: str) -> NoReturn:
    raise _refused("must not contain NaN or Infinity")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _refused("contains a number that is too large")
    return value


def _check_text(value: Any) -> None:
    """Refuse lone surrogates, which no UTF-8 encoder accepts."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if not item.isascii() and any("\ud800" <= character <= "\udfff" for character in item):
                raise _refused("contains a lone surrogate")
        elif isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
