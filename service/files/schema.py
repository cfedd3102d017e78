"""The published schema of a tenant file, as JSON Schema."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from guard.policy import TenantFile


@lru_cache(maxsize=1)
def tenant_file_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a tenant file. Editors use it to complete and check YAML."""
    schema = TenantFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "vllm-guard tenant file"}


def schema_text() -> str:
    """The JSON Schema as `guard schema` prints it."""
    return json.dumps(tenant_file_schema(), indent=2, ensure_ascii=False)


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
