"""Readiness: what takes a server out of service, and what it says about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from guard.service.readiness import SILENCE_LIMIT_S, Readiness, Shortfalls


def readiness(**changes: Any) -> Readiness:
    """A server in service, with `changes`."""
    watcher: Any = SimpleNamespace(state=lambda: SimpleNamespace(healthy=True, revision=1, age_s=0.5))
    made = Readiness(SimpleNamespace(errored=False), watcher, self_test_passed=True, warmed=True)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("changes", "ready"),
    [
        ({}, True),
        ({"draining": True}, False),
        ({"self_test_passed": False}, False),
        ({"warmed": False}, False),
        ({"engine": SimpleNamespace(errored=True)}, False),
    ],
)
def test_every_part_must_be_in_place(changes: dict[str, Any], ready: bool) -> None:
    assert readiness(**changes).ready() is ready


def test_an_engine_that_no_longer_answers_is_out_of_service_until_it_does() -> None:
    server = readiness()
    server.answered_s -= SILENCE_LIMIT_S + 1
    assert not server.ready()
    assert server.report(Shortfalls())["engine"] == "silent" and server.report(Shortfalls())["status"] == "not ready"
    server.engine_answered()
    assert server.ready() and server.report(Shortfalls())["engine"] == "alive"


@pytest.mark.parametrize(
    ("shortfalls", "count", "named"),
    [
        (Shortfalls(packs={"a" * 64: "truncated", "b" * 64: "x"}), "packs_not_loaded", {"a" * 16: "truncated"}),
        (Shortfalls(lists={7: "too many characters"}), "lists_failed", {"7": "too many characters"}),
        (Shortfalls(detectors={9: "RuntimeError"}), "detectors_failed", {"9": "RuntimeError"}),
    ],
)
def test_what_fails_for_one_tenant_degrades_the_server_and_leaves_it_in_service(
    shortfalls: Shortfalls, count: str, named: dict[str, str]
) -> None:
    server = readiness()
    report = server.report(shortfalls)
    assert server.ready() and report["status"] == "degraded"
    reasons = next(value for name, value in report.items() if name.startswith(f"{count}_by"))
    assert isinstance(reasons, dict) and named.items() <= reasons.items()
    assert report[count] == len(reasons)


def test_a_long_list_of_failures_is_counted_whole_and_named_in_part() -> None:
    report = readiness().report(Shortfalls(lists=dict.fromkeys(range(100), "x")))
    assert report["lists_failed"] == 100
    assert len(report["lists_failed_by_tenant"]) == 20  # type: ignore[arg-type]
