"""YAML into plain values, remembering the line of every key and item. Total: any text gives a value or an error.

A small and safe part of YAML 1.2's core schema: text, whole numbers, decimals, `true`, `false`, `null`, lists and
mappings, anchors and aliases. Refused, with a line: tags, duplicate keys, several documents, nesting deeper than 32 and
aliases that blow a small file up. Unlike YAML 1.1, `no` and `2020-01-01` are text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from guard.errors import TenantFileError

MAX_DEPTH = 32
# characters and items of a file after its aliases have been replaced by what they stand for
MAX_WEIGHT = 2**27
Path = tuple[str | int, ...]
Value = str | int | float | bool | None | list[Any] | dict[str, Any]

_CONSTANTS: dict[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
_DECIMAL = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,2})?", re.ASCII)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class Document:
    """A parsed file: its value and the line (from 1) of every path in it."""

    value: Value = None
    lines: dict[Path, int] = field(default_factory=dict)

    def line_of(self, path: Path) -> int:
        """Line of `path`, or of the nearest enclosing thing that is in the file."""
        for length in range(len(path), -1, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return line
        return 1


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not been read yet. `key` is None while a mapping waits for a key.

    `weight` counts characters and items so far, `height` the levels below.
    """

    value: list[Any] | dict[str, Any]
    path: Path
    anchor: str | None
    key: str | None = None
    weight: int = 1
    height: int = 1


@dataclass(frozen=True, slots=True)
class _Anchored:
    """A finished value that an alias may repeat."""

    value: Value
    weight: int
    height: int


def parse_yaml(text: str) -> Document:
    """Parse `text`. Raises TenantFileError with line and path."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise TenantFileError("a character is not valid Unicode text", line=line) from None
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # the parser's own words name the grammar and never quote the file
        reason = f"this is not YAML: {error.problem or error.context}"
        line = mark.line + 1 if mark else 0
        raise TenantFileError(reason, line=line, field=path_text(builder.path)) from None
    except yaml.reader.ReaderError as error:
        line = _reader_line(text, error)
        raise TenantFileError(f"a character is not allowed in YAML: {error.reason}", line=line) from None
    except yaml.YAMLError as error:
        raise TenantFileError(f"this is not YAML: {type(error).__name__}") from None
    return builder.document


def path_text(path: Path) -> str:
    """`tenants[0].targets[2].name`. Keys that are not plain words are cut, so that no text of the file is repeated."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_shown_key(part)}"
    return text.removeprefix(".")


class _Builder:
    """Builds values from parse events with a stack of its own, so that no nesting can exhaust Python's."""

    def __init__(self) -> None:
        self.document = Document()
        self._stack: list[_Open] = []
        self._documents = 0
        self._anchors: dict[str, _Anchored] = {}

    @property
    def path(self) -> Path:
        """Where the next value goes."""
        if not self._stack:
            return ()
        top = self._stack[-1]
        if isinstance(top.value, list):
            return (*top.path, len(top.value))
        return top.path if top.key is None else (*top.path, top.key)

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise TenantFileError("the file holds more than one YAML document", line=line)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event.anchor or "", line)
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event, line)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open({} if isinstance(event, yaml.MappingStartEvent) else [], event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close(line)

    def _error(self, message: str, line: int) -> TenantFileError:
        return TenantFileError(message, line=line, field=path_text(self.path))

    def _waits_for_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        if event.tag not in (None, "!"):
            raise self._error("tags are not supported", line)
        if self._waits_for_key():
            self._key(event.value, line)
            return
        quoted = event.style in ("'", '"', "|", ">")
        value = event.value if quoted else _plain(event.value)
        weight = len(event.value) + 1
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, weight, 0)
        self._place(value, line)
        self._count(weight, 0, line)

    def _alias(self, anchor: str, line: int) -> None:
        if self._waits_for_key():
            raise self._error("a key must be a word", line)
        known = self._anchors.get(anchor)
        # a value cannot hold itself: its anchor is known only once it has ended
        if known is None:
            raise self._error("this alias stands for nothing above it", line)
        if len(self._stack) + known.height > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}", line)
        self._place(known.value, line)
        self._count(known.weight, known.height, line)

    def _count(self, weight: int, height: int, line: int) -> None:
        if not self._stack:
            return
        top = self._stack[-1]
        top.weight += weight
        top.height = max(top.height, height + 1)
        if top.weight > MAX_WEIGHT:
            raise self._error("aliases make this file too large", line)

    def _key(self, key: str, line: int) -> None:
        top = self._stack[-1]
        top.key = key
        if key in top.value:
            raise self._error("this key is there twice", line)
        self.document.lines[self.path] = line

    def _open(self, value: list[Any] | dict[str, Any], event: yaml.CollectionStartEvent, line: int) -> None:
        if event.tag not in (None, "!"):
            raise self._error("tags are not supported", line)
        if self._waits_for_key():
            raise self._error("a key must be a word", line)
        if len(self._stack) >= MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}", line)
        path = self.path
        self._place(value, line)
        self._stack.append(_Open(value, path, event.anchor))

    def _close(self, line: int) -> None:
        done = self._stack.pop()
        if done.anchor is not None:
            self._anchors[done.anchor] = _Anchored(done.value, done.weight, done.height)
        self._count(done.weight, done.height, line)

    def _place(self, value: Value, line: int) -> None:
        self.document.lines.setdefault(self.path, line)
        if not self._stack:
            self.document.value = value
            return
        top = self._stack[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is not None:
            top.value[top.key] = value
            top.key = None


def _plain(text: str) -> Value:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text


def _shown_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key) else key[:16].encode("ascii", "replace").decode() + "…"


def _reader_line(text: str, error: yaml.reader.ReaderError) -> int:
    # libyaml counts in bytes of UTF-8, the Python reader in characters
    if _LOADER is yaml.SafeLoader:
        return text.count("\n", 0, error.position) + 1
    return text.encode()[: error.position].count(b"\n") + 1
