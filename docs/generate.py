"""Write the tables of the pages in BLOCKS from the code.

    python docs/generate.py          rewrite the pages
    python docs/generate.py --check  exit 1 and name the pages that are not up to date

A page keeps its prose; only what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` is replaced.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import typer
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.core import TyperGroup

from guard.engine import flags
from guard.interventions.fit_config import FitConfig
from guard.interventions.registry import methods
from guard.metrics import SERIES, Metrics
from guard.packs.bank import memory_bytes
from guard.policy import TenantFile
from guard.service.settings import PREFIX, Settings
from guard.site import parse_sites

DOCS = Path(__file__).parent
Schema = dict[str, Any]
# name, decoder layers, width of the residual stream
MODEL_SHAPES = (("bundled model", 8, 256), ("0.5B (Qwen2.5)", 24, 896), ("8B (Llama 3.1)", 32, 4096))


def table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table; pipes inside cells are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(value: object) -> str:
    """A value in Markdown's code style."""
    return f"`{value}`"


def kind_of(schema: Schema, definitions: Schema) -> str:
    """What a JSON Schema allows, in a few words."""
    if "$ref" in schema:
        return "section"
    if "anyOf" in schema:
        parts = [kind_of(part, definitions) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in schema:
        return " ".join(code(value) for value in schema["enum"])
    if "const" in schema:
        return code(schema["const"])
    if schema.get("type") == "array":
        return f"list of {kind_of(schema['items'], definitions)}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"mapping of text to {kind_of(schema['additionalProperties'], definitions)}"
    words = {"string": "text", "number": "number", "integer": "whole number", "boolean": "true or false"}
    kind = "path" if schema.get("format") == "path" else words.get(schema.get("type", ""), "any")
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get(
        "maximum", schema.get("exclusiveMaximum")
    )
    if low is not None or high is not None:
        above = "above" if "exclusiveMinimum" in schema else "from"
        below = "below" if "exclusiveMaximum" in schema else "to"
        kind += f", {above} {low}" if low is not None else ""
        kind += f" {below} {high}" if high is not None else ""
    if "pattern" in schema:
        kind += f" matching {code(schema['pattern'])}"
    return kind


def default_of(value: object) -> str:
    """A default as it would be written in a tenant file or a variable."""
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "see text"
    if isinstance(value, Path):
        return code(value)
    if isinstance(value, BaseModel):
        return ""
    if value in ("", (), {}):
        return "empty"
    return code(json.dumps(value))


def settings_table() -> str:
    """One row for each environment variable of the server."""
    properties = Settings.model_json_schema()["properties"]
    rows = (
        (code(PREFIX + name.upper()), kind_of(properties[name], {}), default_of(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    )
    return table(("variable", "value", "default", "meaning"), rows)


def tenant_file_rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Rows for the keys of `model`, those of nested sections after their own row."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for name, field in model.model_fields.items():
        property_schema = schema["properties"][name]
        nested = next(iter(nested_models(field.annotation)), None)
        listed = property_schema.get("type") == "array"
        key = f"{prefix}{name}" + ("[]" if nested and listed else "")
        meaning = field.description or (nested.__doc__ or "" if nested else "")
        kind = ("list of sections" if listed else "section") if nested else kind_of(property_schema, definitions)
        default = "" if nested and not field.is_required() else default_of(field.default)
        yield code(key), kind, default, meaning.splitlines()[0] if meaning else ""
        if nested:
            yield from tenant_file_rows(nested, f"{key}.")


def nested_models(annotation: object) -> Iterator[type[BaseModel]]:
    """Models that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from nested_models(part)


def tenant_file_table() -> str:
    """One row for each key of a tenant file."""
    return table(("key", "value", "default", "meaning"), tenant_file_rows(TenantFile))


def metrics_table() -> str:
    """One row for each series of the guard, in the order of `guard.metrics.SERIES`."""
    found: dict[str, tuple[str, str]] = {}
    for collector in vars(Metrics(CollectorRegistry())).values():
        for metric in collector.describe():
            name = metric.name + ("_total" if metric.type == "counter" else "")
            found[name] = (metric.type, " ".join(code(label) for label in collector._labelnames))
    rows = ((code(name), *found.get(name, ("", "")), meaning) for name, meaning in SERIES.items())
    return table(("series", "type", "labels", "meaning"), rows)


def methods_table() -> str:
    """One row for each method of the registry."""
    rows = (
        (
            code(method.name), method.data.name, method.edit, default_sites(method.config),
            ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in method.paper),
        )
        for method in methods().values()
    )
    return table(("method", "data", "edit", "sites by default", "arXiv"), rows)


def default_sites(config: type[FitConfig]) -> str:
    """Where a method's edit applies unless told otherwise."""
    if "sites" in config.model_fields:
        return default_of(config.model_fields["sites"].default).replace('"', "")
    return "one, to be named with `--site`" if "site" in config.model_fields else "none to choose"


def cli_commands() -> Iterator[tuple[str, Any]]:
    """Every command of `guard` with its full name, groups included."""
    from guard.service.cli.main import app  # builds the whole command tree

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        if isinstance(command, TyperGroup):
            context = command.make_context(name, [], resilient_parsing=True)
            for child in command.list_commands(context):
                yield from walk(f"{name} {child}", command.get_command(context, child))

    yield from walk("guard", typer.main.get_command(app))


def cli_text() -> str:
    """A section for each command: what it does, its arguments and options."""
    sections = []
    for name, command in cli_commands():
        if getattr(command, "hidden", False):
            continue
        parts = [f"### `{name}`", (command.help or "").strip().split("\f")[0]]
        if not isinstance(command, TyperGroup):
            parts.append(parameter_list(command))
        sections.append("\n\n".join(part for part in parts if part))
    return "\n\n".join(sections)


def parameter_list(command: Any) -> str:
    """A Markdown list of a command's arguments and options."""
    lines = []
    for parameter in command.params:
        argument = parameter.param_type_name == "argument"
        shown = parameter.name.upper() if argument else ", ".join(parameter.opts)
        given = getattr(parameter, "default", None)
        default = f" Default: `{given}`." if isinstance(given, str | int | float) and given not in ("", False) else ""
        lines.append(f"- {code(shown)}: {getattr(parameter, 'help', None) or 'see the description'}{default}")
    return "\n".join(lines)


def flags_table() -> str:
    """What the guard does to vLLM's flags, one row each."""
    rows = [(code(flags.flag_of(name)), "refused", reason) for name, reason in flags.REFUSED.items()]
    rows += [
        (code(flags.flag_of(name)), f"at most {limit}", reason) for name, (limit, reason) in flags.LIMITS.items()
    ]
    rows += [
        (code(flags.flag_of(name)), f"set to {code(written(value))}", reason)
        for name, (value, reason) in flags.FORCED.items()
    ]
    rows += [(code(flags.flag_of(name)), "adjusted", how) for name, how in flags.ADJUSTED.items()]
    return table(("flag", "with the guard", "why"), iter(rows))


def environment_table() -> str:
    """What the guard does to vLLM's environment variables, one row each."""
    rows = [(code(name), "refused, set to `0`", reason) for name, reason in flags.FORBIDDEN_ENVIRONMENT.items()]
    rows += [
        (code(name), f"set to {code(value)}" if value else "emptied", reason)
        for name, (value, reason) in flags.FORCED_ENVIRONMENT.items()
    ]
    return table(("variable", "with the guard", "why"), iter(rows))


def written(value: object) -> str:
    """A forced value as it would be written on the command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value).lower()


def bank_memory_table() -> str:
    """Memory of the edit bank for three shapes of models, at the sites of `auto` and of `all`."""
    slots = Settings().max_slots
    rows = []
    for name, num_layers, width in MODEL_SHAPES:
        for sites in ("auto", "all"):
            count = len(parse_sites(sites, num_layers))
            sizes = [
                memory_bytes(count, number, width, rank, torch.bfloat16) / 2**20
                for rank in (16, 32) for number in (1, slots + 1)
            ]
            rows.append((name, f"{code(sites)}: {count}", *(f"{size:,.1f} MiB" for size in sizes)))
    sizes_of = [f"{what}, rank {rank}" for rank in (16, 32) for what in ("one slot", f"bank of {slots} slots")]
    return table(("model", "sites", *sizes_of), iter(rows))


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "configuration.md": {"settings": settings_table, "tenant-file": tenant_file_table},
    "metrics.md": {"metrics": metrics_table},
    "fitting.md": {"methods": methods_table},
    "cli.md": {"commands": cli_text},
    "deployment.md": {"flags": flags_table, "environment": environment_table},
    "edits.md": {"bank-memory": bank_memory_table},
}


def render(page: str, text: str) -> str:
    """The page with its generated blocks made anew. Raises ValueError for a page without a block's markers."""
    for block, make in BLOCKS[page].items():
        pattern = re.compile(rf"(<!-- begin {block} -->\n).*?(<!-- end {block} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"docs/{page} has no markers for the block {block}")
        body = make()
        text = pattern.sub(lambda match, body=body: f"{match[1]}\n{body}\n\n{match[2]}", text)  # type: ignore[misc]
    return text


def main() -> int:
    """Rewrite or check the pages; the exit code."""
    stale = []
    for page in BLOCKS:
        path = DOCS / page
        text = path.read_text(encoding="utf-8")
        wanted = render(page, text)
        if text != wanted:
            stale.append(page)
            if "--check" not in sys.argv[1:]:
                path.write_text(wanted, encoding="utf-8")
    for page in stale:
        sys.stdout.write(f"docs/{page} {'is not up to date' if '--check' in sys.argv[1:] else 'written'}\n")
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
