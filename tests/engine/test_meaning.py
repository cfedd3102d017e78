"""The comparison by meaning in the output check of one answer; the engine and the gate's answers are scripts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.sampling_params import RequestOutputKind

from guard.errors import DetectorError
from tests.engine.scripted_answers import PROMPT, ScriptedGate, outputs, text


def secret(sentence: str) -> bool:
    return "secret" in sentence


def rolling(says: Sequence[int], constrained: bool) -> list[str]:
    if constrained:
        return [" Nobody", " knows", " it", "."]
    return ["Well", ".", " The", " secret", " is", " out", ".", " More", " follows", "."]


async def test_text_waits_for_the_end_of_its_sentence() -> None:
    gate = ScriptedGate((), similar=secret)
    found, _ = await outputs(lambda *_: ["One", " two", ".", " Three", " four"], gate)
    assert [choice.text for output in found for choice in output.outputs] == ["One two.", " Three four"]
    assert gate.compared == ["One two.", " Three four"]
    assert gate.counts["rollbacks"] == 0 and gate.counts["held_back"] > 0
    assert found[-1].outputs[0].finish_reason == "stop"


@pytest.mark.parametrize("kind", list(RequestOutputKind))
async def test_a_like_sentence_rolls_back_to_the_sentence_before(kind: RequestOutputKind) -> None:
    gate = ScriptedGate((), similar=secret)
    found, engine = await outputs(rolling, gate, max_tokens=16, seed=3, kind=kind)
    whole = text(found) if kind == RequestOutputKind.DELTA else found[-1].outputs[0].text
    assert whole == "Well. Nobody knows it."
    assert gate.counts["rollbacks"] == 1 and gate.counts["filtered"] == 0
    assert gate.resumed == [[*PROMPT, 104, 101]]
    assert engine.closed == ["r-1"]
    first, second = (request[1].seed for request in engine.requests)
    assert first != second


async def test_a_like_last_sentence_is_not_released_when_the_answer_ends() -> None:
    gate = ScriptedGate((), similar=secret, max_rollbacks=1)
    found, engine = await outputs(lambda *_: ["Yes", ".", " My", " secret"], gate)
    assert text(found) == "Yes.Yes."
    assert found[-1].outputs[0].finish_reason == "content_filter"
    assert len(engine.requests) == 2 and gate.counts["filtered"] == 1


async def test_a_comparison_that_fails_ends_the_answer_without_another_draw() -> None:
    def failing(sentence: str) -> bool:
        if "two" in sentence:
            raise DetectorError("late")
        return False

    gate = ScriptedGate((), similar=failing)
    found, engine = await outputs(lambda *_: ["One", ".", " Part", " two", ".", " Three"], gate)
    assert text(found) == "One."
    assert found[-1].outputs[0].finish_reason == "content_filter"
    assert len(engine.requests) == 1 and engine.closed == ["r-1"]
    assert gate.counts["filtered"] == 1 and gate.counts["rollbacks"] == 0 and gate.finished == 1


async def test_forbidden_strings_still_count() -> None:
    gate = ScriptedGate(("alpha seven",), similar=secret, max_rollbacks=0)
    found, _ = await outputs(lambda *_: ["Fine", ".", " It", " is", " alpha", " seven", "."], gate)
    assert text(found) == "Fine."
    assert found[-1].outputs[0].finish_reason == "content_filter"


async def test_a_sentence_that_was_begun_before_a_roll_back_is_compared_as_a_whole() -> None:
    def script(says: Sequence[int], constrained: bool) -> list[str]:
        return [", they say."] if constrained else ["It was here", ". The", " secret", ".", " So"]

    gate = ScriptedGate((), similar=secret)
    found, _ = await outputs(script, gate)
    assert text(found) == "It was here, they say."
    assert gate.compared[-1] == "It was here, they say."


async def test_a_sentence_that_began_before_the_answer_is_compared_as_a_whole() -> None:
    gate = ScriptedGate((), similar=secret, before="Go on. The sec")
    found, _ = await outputs(lambda *_: ["ret", " is", " out", ".", " So"], gate)
    assert text(found) == ""
    assert gate.compared == [" The secret is out."] * 3
    assert found[-1].outputs[0].finish_reason == "content_filter"


async def test_answers_that_are_not_compared_are_not_split() -> None:
    gate = ScriptedGate(("zzz",))
    found, _ = await outputs(lambda *_: ["One", " two", "."], gate)
    assert [choice.text for output in found for choice in output.outputs] == ["One", " two", "."]
    assert not gate.compared


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["sec", "ret", " ", ".", ". ", "secret", "a", "\n", "! Go"]), min_size=1, max_size=14))
async def test_whatever_the_engine_says_a_like_sentence_never_leaves(pieces: list[str]) -> None:
    gate = ScriptedGate((), similar=secret, max_rollbacks=0)
    found, _ = await outputs(lambda *_: pieces, gate, max_tokens=100)
    assert "secret" not in text(found)
    said = "".join(pieces)
    if "secret" in said:
        assert said.startswith(text(found)) and found[-1].outputs[0].finish_reason == "content_filter"
    else:
        assert text(found) == said
