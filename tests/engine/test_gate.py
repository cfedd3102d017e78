"""The engine's gate, on real request objects of vLLM."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from guard.engine import gate, tickets
from guard.engine.gate import RequestGate
from guard.errors import TicketError
from guard.plan import Plan
from guard.ticket import cache_salt, sign, verify

KEY = b"k" * 64
IDS = [5, 6, 7, 8]


def request(ticket: Any = None, **changes: Any) -> EngineCoreRequest:
    """A request as the front end sends it."""
    values: dict[str, Any] = {
        "request_id": "r", "prompt_token_ids": IDS, "mm_features": None, "pooling_params": None, "arrival_time": 0.0,
        "sampling_params": SamplingParams(extra_args=None if ticket is None else {"guard": ticket}),
        "lora_request": None, "cache_salt": "client", "data_parallel_rank": None, **changes,
    }
    return EngineCoreRequest(**values)


def ticket(ids: list[int] = IDS, salt: str | None = None, **changes: Any) -> str:
    """A valid ticket for `ids`."""
    what = Plan(**{"tenant_index": 0, "policy_version": "1", "prompt_length": len(ids), **changes})
    return sign(what, cache_salt("t", what, KEY) if salt is None else salt, ids, KEY, now_s=time.time())


VALID = ticket()


@pytest.fixture
def door() -> RequestGate:
    """The gate of one engine."""
    return RequestGate(KEY)


def test_a_valid_ticket_is_admitted_and_its_salt_replaces_the_clients(door: RequestGate) -> None:
    asked = request(ticket())
    admitted = door.admit(asked, time.time())
    assert asked.cache_salt == admitted.salt != "client"


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling_params": None}, {"prompt_token_ids": None}, {"prompt_token_ids": [*IDS, 9]}, {"resumable": True},
        {"sampling_params": None, "pooling_params": PoolingParams()},
    ],
)
def test_a_request_that_a_ticket_cannot_cover_is_refused(changes: dict[str, Any], door: RequestGate) -> None:
    with pytest.raises(TicketError):
        door.admit(request(ticket(), **changes), time.time())
    assert door.counters() == {"admitted_requests": 0, "refused_requests": 1}


def test_a_ticket_for_another_length_or_without_salt_is_refused(door: RequestGate) -> None:
    for bad in (ticket(prompt_length=3), ticket(salt="")):
        with pytest.raises(TicketError):
            door.admit(request(bad), time.time())


def test_a_ticket_is_verified_once_and_still_compared_with_each_prompt(
    door: RequestGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    real = verify

    def counting(text: str, *rest: Any, **options: Any) -> Any:
        verified.append(text)
        return real(text, *rest, **options)

    monkeypatch.setattr("guard.engine.tickets.verify", counting)
    text = ticket()
    for _ in range(3):
        asked = request(text)
        assert door.admit(asked, time.time()) is door.tickets.of(asked.sampling_params)
    assert verified == [text]
    with pytest.raises(TicketError, match="another prompt"):
        door.admit(request(text, prompt_token_ids=[5, 6, 7, 9]), time.time())


def test_only_the_latest_tickets_are_kept() -> None:
    kept = tickets.VerifiedTickets(KEY, kept=2)
    made = [ticket(policy_version=str(version)) for version in range(3)]
    first = [kept.of(request(text).sampling_params) for text in made]
    assert kept.of(request(made[2]).sampling_params) is first[2]
    again = kept.of(request(made[0]).sampling_params)
    assert again == first[0] and again is not first[0]


def test_an_expired_ticket_is_refused(door: RequestGate) -> None:
    with pytest.raises(TicketError, match="expired"):
        door.admit(request(ticket()), time.time() + 4000)


@settings(max_examples=200, deadline=None)
# vLLM itself refuses integers that its message format cannot carry
@given(st.one_of(st.none(), st.text(), st.integers(-(2**63), 2**64 - 1), st.binary(), st.lists(st.text())))
def test_nothing_but_a_ticket_is_admitted(value: Any) -> None:
    with pytest.raises(TicketError):
        RequestGate(KEY).admit(request(value), time.time())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_character_breaks_the_ticket(data: st.DataObject) -> None:
    text = VALID
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.characters().filter(lambda character: character != text[place]))
    with pytest.raises(TicketError):
        RequestGate(KEY).admit(request(text[:place] + letter + text[place + 1 :]), time.time())


@pytest.mark.parametrize("letter", ["\ud800", "\u00e9", "\u0660"])
@pytest.mark.parametrize("place", [0, VALID.index(".") + 1, len(VALID) - 1])
def test_a_character_outside_ascii_breaks_the_ticket(place: int, letter: str, door: RequestGate) -> None:
    with pytest.raises(TicketError):
        door.admit(request(VALID[:place] + letter + VALID[place + 1 :]), time.time())


def test_the_gate_is_installed_once_and_for_every_engine_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.engine.core import DPEngineCoreProc, EngineCore, EngineCoreProc

    monkeypatch.setenv("GUARD_TICKET_KEY", "k" * 64)
    monkeypatch.setattr(EngineCore, "preprocess_add_request", EngineCore.preprocess_add_request)
    gate.install()
    once = EngineCore.preprocess_add_request
    gate.install()
    assert EngineCore.preprocess_add_request is once
    assert EngineCoreProc.preprocess_add_request is DPEngineCoreProc.preprocess_add_request is once
    assert gate.installed_everywhere()
    monkeypatch.setattr(EngineCoreProc, "preprocess_add_request", lambda self, request: request, raising=False)
    assert not gate.installed_everywhere()


def test_the_scheduler_module_cannot_be_imported_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    from guard.errors import ConfigurationError

    monkeypatch.delenv("GUARD_TICKET_KEY", raising=False)
    monkeypatch.delitem(sys.modules, "guard.engine.scheduler", raising=False)
    with pytest.raises(ConfigurationError):
        importlib.import_module("guard.engine.scheduler")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_scheduler_takes_the_form_that_the_engine_needs(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.engine.core import EngineCore

    monkeypatch.setenv("GUARD_TICKET_KEY", "k" * 64)
    monkeypatch.setattr(EngineCore, "preprocess_add_request", EngineCore.preprocess_add_request)
    from guard.engine.scheduler import GuardScheduler

    config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=asynchronous))
    made = GuardScheduler.__new__(GuardScheduler, vllm_config=config)
    assert isinstance(made, GuardScheduler)
    assert isinstance(made, AsyncScheduler) is asynchronous
