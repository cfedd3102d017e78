"""The published schema of a tenant file, as JSON Schema and as a flat list of fields for the documentation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from guard.policy import TenantFile


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """One key of a tenant file. `path` is like `tenants[].policy.action`; `default` is JSON, empty when required."""

    path: str
    type: str
    default: str
    description: str


@lru_cache(maxsize=1)
def tenant_file_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a tenant file. Editors use it to complete and check YAML."""
    schema = TenantFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "vllm-guard tenant file"}


def schema_text() -> str:
    """The JSON Schema as `guard schema` prints it."""
    return json.dumps(tenant_file_schema(), indent=2, ensure_ascii=False)


def field_docs() -> tuple[FieldDoc, ...]:
    """Every key of a tenant file in the order of the schema, sections before their keys."""
    return tuple(_walk(tenant_file_schema(), ""))


def known_keys(path: tuple[str | int, ...]) -> tuple[str, ...]:
    """Keys that the mapping at `path` may hold; empty when there is no mapping there."""
    schema = tenant_file_schema()
    for part in path:
        child = schema.get("items") if isinstance(part, int) else schema.get("properties", {}).get(part)
        if child is None:
            return ()
        schema = _resolve(child)
    return tuple(schema.get("properties", {}))


def _resolve(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        found: dict[str, Any] = tenant_file_schema()["$defs"][schema["$ref"].rsplit("/", 1)[1]]
        return {**found, **{key: value for key, value in schema.items() if key != "$ref"}}
    for option in schema.get("anyOf", ()):
        if option.get("type") == "array":
            return {**schema, **option}
    return schema


def _walk(schema: dict[str, Any], prefix: str) -> list[FieldDoc]:
    docs: list[FieldDoc] = []
    for key, raw in schema.get("properties", {}).items():
        child = _resolve(raw)
        path = f"{prefix}{key}"
        default = json.dumps(raw["default"]) if "default" in raw and "properties" not in child else ""
        docs.append(FieldDoc(path, _type_text(raw), default, raw.get("description", child.get("description", ""))))
        item = _resolve(child["items"]) if "items" in child else {}
        docs.extend(_walk(item, f"{path}[].") if "properties" in item else _walk(child, f"{path}."))
    return docs


def _type_text(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type_text(option) for option in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type_text(schema['items'])}"
    if "$ref" in schema:
        return "mapping"
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    kind = str(schema.get("type", "mapping"))
    return names.get(kind, kind)
