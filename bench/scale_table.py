"""The answers of `bench/scale.py` as rows: what was asked, what came out, the bar, and whether it was met."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = dict[str, str]


def rows(report: dict[str, Any]) -> list[Row]:
    """One row for each question that has been measured."""
    sections = {
        "start": _start, "first": _first, "active": _active, "batch": _batch, "change": _change, "large": _large,
    }
    return [row for name, section in sections.items() if name in report for row in section(report[name])]


def _start(found: dict[str, Any]) -> Iterator[Row]:
    few, many = found["few"], found["many"]
    stored = f"{many['tenants']:,} stored tenants of 10 targets"
    yield _row(f"`guard apply` of {stored}", many["apply_s"], "s", 60)
    yield _row(f"`guard apply` of {few['tenants']} tenants", few["apply_s"], "s")
    yield _row(f"`guard apply` of {stored}, nothing changed", many["apply_unchanged_s"], "s")
    yield _row(f"start with {few['tenants']} stored tenants", few["start_s"], "s")
    yield _row(f"start with {stored}", many["start_s"], "s")
    yield _row("start, later than with few", round(many["start_s"] - few["start_s"], 1), "s", 30)
    added = many["tenants"] - few["tenants"]
    for kind, title in (("total", "all processes"), ("server", "server"), ("engine", "engine"), ("worker", "worker")):
        each = round((many["memory_kb"][kind] - few["memory_kb"][kind]) / added, 1)
        yield _row(f"resident memory for each idle tenant, {title}", each, "kB", 200 if kind == "total" else None)


def _first(found: dict[str, Any]) -> Iterator[Row]:
    first = found["first_token_s"]
    yield _row("first token, cold tenant, median", first["cold"]["p50"], "s", 1.5)
    yield _row("first token, cold tenant, slowest", first["cold"]["max"], "s", 1.5)
    yield _row("first token, warm tenant, flagged prompt, median", first["warm"]["p50"], "s")
    over = found["warm_over_unguarded_ms"]
    yield _row("warm over unguarded, flagged prompt", over["flagged"], "ms", 20)
    yield _row("warm over unguarded, ordinary prompt", over["ordinary"], "ms", 20)


def _active(found: dict[str, Any]) -> Iterator[Row]:
    sizes = found["sizes"]
    for kind, title in (("total", "all processes"), ("server", "server"), ("engine", "engine"), ("worker", "worker")):
        each = found["memory_kb_per_active_tenant"][kind]
        yield _row(f"resident memory for each of {sizes['active']:,} active tenants, {title}", each, "kB")
    yield _row(f"{sizes['active']:,} tenants asked once, refused or failed", _failed(found), "requests", 0)
    yield _row(f"{sizes['active']:,} tenants asked once, unguarded", _missed(found, sizes["active"]), "requests", 0)


def _batch(found: dict[str, Any]) -> Iterator[Row]:
    title = f"{found['tenants']} tenants asked at once"
    bar = found["sizes"]["batch"]
    yield _row(f"{title}, most of them in one batch", found["most_running_at_once"], "requests", bar, least=True)
    yield _row(f"{title}, refused or failed", _failed(found), "requests", 0)
    yield _row(f"{title}, unguarded", _missed(found, found["tenants"]), "requests", 0)
    gap = abs(found["corrupted_tokens_expected"] - found["corrupted_tokens_counted"])
    yield _row(f"{title}, prompt tokens that should have been corrupted and were not", gap, "tokens", 0)
    yield _row(f"{title}, all answered", found["seconds"], "s")


def _change(found: dict[str, Any]) -> Iterator[Row]:
    latency, lists = found["latency_ms"], found["lists"]
    yield _row("p99 of others, no change", latency["quiet"]["p99"], "ms")
    yield _row(f"p99 of others, {lists} lists changed one by one", latency["one_by_one"]["p99"], "ms")
    yield _row("the same, over no change", found["p99_over_quiet_ms"], "ms", 50)
    yield _row("p99 of others, `guard apply` that changes nothing", latency["apply_without_change"]["p99"], "ms")
    yield _row(f"p99 of others, `guard apply` that changes {lists} lists", latency["apply"]["p99"], "ms")
    yield _row("the same, over one that changes nothing", found["p99_over_apply_without_change_ms"], "ms", 50)
    failed = sum(count for status, count in found["statuses"].items() if status != "200")
    yield _row("requests of others that were refused or failed", failed, "requests", 0)


def _large(found: dict[str, Any]) -> Iterator[Row]:
    others = found["others_latency_ms"]
    yield _row(f"tenant with {found['strings']:,} strings, from the end of apply to its first answer",
               found["answered_s"], "s")
    yield _row("its requests that were refused before", found["refused_before"], "requests")
    yield _row("its first token when warm", found["warm_first_token_s"], "s")
    yield _row("p99 of others before", others["quiet"]["p99"], "ms")
    yield _row("p99 of others meanwhile", others["meanwhile"]["p99"], "ms")


def _failed(found: dict[str, Any]) -> int:
    return sum(count for status, count in found["statuses"].items() if status != "200")


def _missed(found: dict[str, Any], asked: int) -> int:
    """Requests that were let through unguarded, or for which no intervention was planned."""
    return int(found["unguarded"] + max(0, asked - found["flagged"]))


def _row(question: str, value: float, unit: str, bar: float | None = None, *, least: bool = False) -> Row:
    """`bar` is the largest good value, or the smallest with `least`."""
    row = {"question": question, "measured": f"{value:,}", "unit": unit, "bar": "", "verdict": ""}
    if bar is not None:
        row["bar"] = f"at {'least' if least else 'most'} {bar:,}"
        row["verdict"] = "met" if (value >= bar if least else value <= bar) else "missed"
    return row
