"""Tenant files: YAML text into a validated TenantFile. Every problem names its line and field, and no value.

Beyond the schema of `guard.policy`, entries that would flag or mask ordinary speech are refused: names, aliases and
forbidden strings that are empty, one character or nothing but stop words; forbidden strings whose normal form is not
4 to 512 characters long; a tenant that is there twice; an edit that names a target which is not on the list.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from guard.classifiers.normalize import mask_form, strong_form
from guard.errors import TenantFileError
from guard.policy import Target, TenantFile, TenantSpec
from guard.service.door.stop_words import STOP_WORDS
from guard.service.files.openings_check import opening_problems
from guard.service.files.schema import known_keys
from guard.service.files.yaml_positions import Document, parse_yaml, path_text
from guard.service.files.yaml_positions import Path as FieldPath

MAX_FILE_BYTES = 64 * 2**20
MAX_PROBLEMS = 20
FORBID_CHARACTERS = (4, 512)
NAME_CHARACTERS = (2, 512)
_FIELD_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
# stop words in the form in which they are compared
# stop words that people and works are called
_CALLED = frozenset({"can", "don", "her", "may", "them", "us", "will"})
_COMMON = frozenset(mask_form(word) for word in STOP_WORDS)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a file. `line` counts from 1, `field` is a dotted path, `message` repeats no value."""

    message: str
    line: int
    field: str

    def error(self) -> TenantFileError:
        """The same as an exception."""
        return TenantFileError(self.message, line=self.line, field=self.field)


def load_tenant_file(path: Path) -> TenantFile:
    """Read and validate a file. Raises TenantFileError for its first problem."""
    return parse_tenant_file(read_text(path))


def parse_tenant_file(text: str) -> TenantFile:
    """Validate YAML text. Raises TenantFileError for its first problem."""
    file, problems = examine(text)
    if file is None:
        raise problems[0].error()
    return file


def read_text(path: Path) -> str:
    """Text of a tenant file. Raises TenantFileError when it cannot be read, is too large or is not UTF-8."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TenantFileError(f"{path.name} is larger than {MAX_FILE_BYTES // 2**20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise TenantFileError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TenantFileError("the file is not UTF-8", line=line) from None


def examine(text: str) -> tuple[TenantFile | None, tuple[Problem, ...]]:
    """The validated file, or None and its first problems (at most 20) in the order of their lines."""
    try:
        document = parse_yaml(text)
    except TenantFileError as error:
        return None, (Problem(_bare_message(error), error.line, error.field),)
    if not isinstance(document.value, dict):
        return None, (Problem("a tenant file is a mapping with the keys `version` and `tenants`", 1, ""),)
    try:
        # strict JSON mode: lists become tuples, but a number is never taken for text nor text for a number
        file = TenantFile.model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as error:
        return None, _ordered(_schema_problems(error, document))
    problems = _ordered(_meaning_problems(file, document))
    return (None, problems) if problems else (file, ())


def with_line(error: TenantFileError, text: str) -> TenantFileError:
    """`error` with the line of its field in `text`, the tenant file that it came from."""
    parts = _FIELD_PART.findall(error.field)
    path: FieldPath = tuple(int(number) if number else key for number, key in parts)
    return TenantFileError(_bare_message(error), line=parse_yaml(text).line_of(path), field=error.field)


def _bare_message(error: TenantFileError) -> str:
    place = str(TenantFileError("", line=error.line, field=error.field))
    return str(error).removeprefix(place)


def _ordered(problems: Iterator[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(problems, key=lambda problem: problem.line)[:MAX_PROBLEMS])


def _schema_problems(error: ValidationError, document: Document) -> Iterator[Problem]:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    for detail in details:
        path = tuple(detail["loc"])
        # pydantic calls a list too short when its items are wrong; the items' own problems say more
        if detail["type"] == "too_short" and any(d["loc"][: len(path)] == path for d in details if d is not detail):
            continue
        message = detail["msg"]
        if detail["type"] == "extra_forbidden":
            message = _unknown_key(path)
        elif detail["type"] == "missing":
            message = "this key is required"
        elif detail["type"] == "too_short":
            message = "must hold at least one item"
        elif detail["type"] == "value_error":
            message = message.removeprefix("Value error, ")
        elif detail["type"] == "string_type":
            message = "must be text; put it in quotes if it is a number, a date, true, false or empty"
        yield Problem(message, document.line_of(path), path_text(path))


def _unknown_key(path: FieldPath) -> str:
    known = known_keys(path[:-1])
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key; {hint}"


def _meaning_problems(file: TenantFile, document: Document) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for number, tenant in enumerate(file.tenants):
        base: FieldPath = ("tenants", number)
        if tenant.name in seen:
            message = f"this tenant is already at line {seen[tenant.name]}"
            yield Problem(message, document.line_of((*base, "name")), path_text((*base, "name")))
        seen.setdefault(tenant.name, document.line_of((*base, "name")))
        for path, message in [*_edit_problems(tenant, base), *opening_problems(tenant, base)]:
            yield Problem(message, document.line_of(path), path_text(path))
        for index, target in enumerate(tenant.targets):
            for path, message in _target_problems(target, (*base, "targets", index)):
                yield Problem(message, document.line_of(path), path_text(path))
        for index, prompt in enumerate(tenant.benign):
            if not prompt.strip():
                path = (*base, "benign", index)
                yield Problem("must not be blank", document.line_of(path), path_text(path))


def _edit_problems(tenant: TenantSpec, base: FieldPath) -> Iterator[tuple[FieldPath, str]]:
    names = {target.name for target in tenant.targets}
    for index, edit in enumerate(tenant.policy.edits):
        for name in edit.targets:
            if name not in names:
                yield (*base, "policy", "edits", index, "targets", name), "no target of this tenant has this name"


def _target_problems(target: Target, base: FieldPath) -> Iterator[tuple[FieldPath, str]]:
    names = [((*base, "name"), target.name)]
    names += [((*base, "aliases", index), alias) for index, alias in enumerate(target.aliases)]
    for path, text in names:
        message = _too_common(text, name=True) or _wrong_length(strong_form(text), NAME_CHARACTERS)
        if message:
            yield path, message
    for index, text in enumerate(target.forbid or ()):
        message = _too_common(text) or _wrong_length(mask_form(text), FORBID_CHARACTERS)
        if message:
            yield (*base, "forbid", index), message
    for key, texts in (("examples", target.examples), ("answers", target.answers)):
        for index, text in enumerate(texts):
            if not mask_form(text):
                yield (*base, key, index), "must hold at least one letter or digit"


def _too_common(text: str, *, name: bool = False) -> str | None:
    """What speaks against a string. A `name` may be a stop word where a capital letter tells them apart ("Will")."""
    words = mask_form(text).split()
    if name and len(words) == 1 and words[0] in _CALLED and text.strip()[:1].isupper():
        return None
    if not words:
        return "must hold letters or digits: this would match nothing or everything"
    if all(word in _COMMON or (len(word) == 1 and _is_letter(word)) for word in words):
        return "holds only stop words or single letters: this would match ordinary speech"
    return None


def _is_letter(character: str) -> bool:
    # one Chinese character is a word; one letter of an alphabet is not
    return unicodedata.category(character) != "Lo"


def _wrong_length(normal: str, limits: tuple[int, int]) -> str | None:
    low, high = limits
    if low <= len(normal) <= high:
        return None
    return f"must be {low} to {high} letters and digits long after normalisation, is {len(normal)}"
