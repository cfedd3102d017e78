"""The strict JSON reader: what it accepts is what any other parser would read, everything else is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import RequestRefused
from guard.service.door.body import MAX_DEPTH, parse, serialise

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=25,
)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b"{",
        b'{"a":1}x',
        b'{"a":1,"a":2}',
        b'{"b":{"a":1,"a":1}}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b'{"a":"\xff"}',
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-32"),
        b'{"a":' + b"[" * 100_000,
        b"[" * 33 + b"]" * 33,
        b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    ],
)
def test_refused_bodies(body: bytes) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse(body)
    assert caught.value.status == 400


def test_brackets_inside_strings_do_not_count_as_depth() -> None:
    assert parse(json.dumps({"a": "[" * 100 + '\\"{'}).encode()) == {"a": "[" * 100 + '\\"{'}


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_good_json_survives_the_round_trip(value: dict[str, Any]) -> None:
    try:
        seen = parse(json.dumps(value).encode())
    except RequestRefused:
        # a lone surrogate, or deeper than is served
        return
    assert seen == value
    assert json.loads(serialise(seen)) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        value = parse(body)
    except RequestRefused:
        return
    assert isinstance(value, dict)
