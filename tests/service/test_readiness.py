"""Readiness: what takes a server out of service, and what it says about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from guard.service.readiness import SILENCE_LIMIT_S, Readiness


def readiness(**changes: Any) -> Readiness:
    """A server in service, with `changes`."""
    watcher: Any = SimpleNamespace(state=lambda: SimpleNamespace(healthy=True, revision=1, age_s=0.5))
    made = Readiness(SimpleNamespace(errored=False), watcher, self_test_passed=True, constraints_loaded=True)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("changes", "ready"),
    [
        ({}, True),
        ({"draining": True}, False),
        ({"self_test_passed": False}, False),
        ({"constraints_loaded": False}, False),
        ({"engine": SimpleNamespace(errored=True)}, False),
    ],
)
def test_every_part_must_be_in_place(changes: dict[str, Any], ready: bool) -> None:
    assert readiness(**changes).ready() is ready


def test_an_engine_that_no_longer_answers_is_out_of_service_until_it_does() -> None:
    server = readiness()
    server.answered_s -= SILENCE_LIMIT_S + 1
    assert not server.ready()
    assert server.report(0)["engine"] == "silent" and server.report(0)["status"] == "not ready"
    server.engine_answered()
    assert server.ready() and server.report(0)["engine"] == "alive"


def test_packs_that_are_not_loaded_degrade_the_server_and_leave_it_in_service() -> None:
    server = readiness(packs_failed=2)
    assert server.ready()
    assert (server.report(0)["status"], server.report(0)["packs_not_loaded"]) == ("degraded", 2)
