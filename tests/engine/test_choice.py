"""The output check of one answer: hold-back, roll-back, and the shapes that every output kind needs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine.admission import CURRENT_REQUEST, Admission, RequestContext
from guard.engine.client import GuardedEngineClient
from guard.errors import RequestRefused
from tests.engine.scripted_answers import ACME, PROMPT, ScriptedEngine, ScriptedGate, outputs, text


async def test_clean_answers_come_through_whole() -> None:
    gate = ScriptedGate(("alpha seven",))
    found, engine = await outputs(lambda *_: ["The ", "al", "phabet ", "ends", ""], gate)
    assert text(found) == "The alphabet ends"
    assert [choice.finish_reason for choice in found[-1].outputs] == ["stop"]
    assert sum(len(choice.token_ids) for output in found for choice in output.outputs) == 5
    assert found[-1].finished and not any(output.finished for output in found[:-1])
    assert gate.counts["rollbacks"] == 0 and gate.finished == 1
    assert engine.requests[0][1].extra_args == {"guard": "ticket"}


async def test_text_that_may_begin_a_match_is_held_back() -> None:
    gate = ScriptedGate(("alpha seven",))
    seen: list[str] = []
    found, _ = await outputs(lambda *_: ["It is ", "alpha ", "six", "."], gate)
    seen = [choice.text for output in found for choice in output.outputs]
    assert "alpha " not in seen
    assert "".join(seen) == "It is alpha six."
    assert gate.counts["held_back"] > 0


def rolling(says: Sequence[int], constrained: bool) -> list[str]:
    return [" one", " two", "."] if constrained else ["The code is", " alpha", " seven", " indeed"]


async def test_a_hit_rolls_back_to_the_last_released_token_and_resumes_constrained() -> None:
    gate = ScriptedGate(("alpha seven",))
    found, engine = await outputs(rolling, gate, max_tokens=16)
    assert text(found) == "The code is one two."
    assert gate.counts["rollbacks"] == 1 and gate.counts["filtered"] == 0
    assert engine.closed == ["r-1"]
    first, second = engine.requests
    assert second[0]["prompt_token_ids"] == [*PROMPT, 100 + len("The code is")]
    assert gate.resumed == [second[0]["prompt_token_ids"]]
    assert (first[1].max_tokens, second[1].max_tokens) == (16, 15)
    assert second[0]["cache_salt"] == "salt"


@pytest.mark.parametrize("kind", list(RequestOutputKind))
async def test_every_output_kind_gives_the_same_answer(kind: RequestOutputKind) -> None:
    found, _ = await outputs(rolling, ScriptedGate(("alpha seven",)), kind=kind)
    final = found[-1].outputs[0]
    assert found[-1].finished and final.finish_reason == "stop"
    if kind == RequestOutputKind.DELTA:
        assert text(found) == "The code is one two."
    else:
        assert final.text == "The code is one two."
        assert len(final.token_ids) == 4
    if kind == RequestOutputKind.FINAL_ONLY:
        assert len(found) == 1


async def test_used_up_rollbacks_end_with_content_filter() -> None:
    gate = ScriptedGate(("alpha seven",), max_rollbacks=2)
    found, engine = await outputs(lambda *_: ["Well,", " alpha", " seven"], gate)
    assert text(found) == "Well,Well,Well,"
    assert found[-1].outputs[0].finish_reason == "content_filter"
    assert len(engine.requests) == 3
    assert gate.counts == {"held_back": gate.counts["held_back"], "rollbacks": 3, "filtered": 1}


async def test_a_stop_string_forbids_resuming_a_begun_answer() -> None:
    gate = ScriptedGate(("alpha seven",))
    found, engine = await outputs(rolling, gate, stop=["zzz"])
    assert found[-1].outputs[0].finish_reason == "content_filter"
    assert text(found) == "The code is"
    assert len(engine.requests) == 1


@pytest.mark.parametrize("stop", ["seven", "alpha seven", "is alpha seven", "alpha"])
async def test_a_stop_string_that_guesses_ends_like_any_other(stop: str) -> None:
    """The engine cuts a stop string off; ending where a forbidden string began would confirm the guess."""

    class Stopping(ScriptedEngine):
        async def generate(self, prompt: Any, params: SamplingParams, request_id: str) -> AsyncGenerator[Any, None]:
            self.requests.append((prompt, params, request_id))
            whole = "The code is alpha seven"
            for piece, reason in (("The ", None), (whole[4 : whole.index(stop)], "stop")):
                token = CompletionOutput(0, piece, [100], None, None, finish_reason=reason)
                token.stop_reason = stop if reason else None
                yield RequestOutput(request_id, None, PROMPT, None, [token], reason is not None)

    engine = Stopping(lambda *_: [])
    client = GuardedEngineClient(engine, ScriptedGate(("alpha seven",)))
    token = CURRENT_REQUEST.set(RequestContext("r", ACME))
    params = SamplingParams(output_kind=RequestOutputKind.DELTA, stop=[stop])
    found = [output async for output in client.generate({"prompt_token_ids": PROMPT}, params, "r-1")]
    CURRENT_REQUEST.reset(token)
    complete = stop.endswith("seven")
    assert found[-1].outputs[0].finish_reason == ("content_filter" if complete else "stop")
    assert "alpha" not in text(found) and found[-1].outputs[0].stop_reason is None


async def test_a_refused_resume_ends_with_content_filter() -> None:
    class Failing(ScriptedGate):
        async def resume(self, context: RequestContext, admission: Admission, token_ids: Sequence[int]) -> Admission:
            raise RequestRefused("gone", status=503)

    found, _ = await outputs(rolling, Failing(("alpha seven",)))
    assert found[-1].outputs[0].finish_reason == "content_filter"


async def test_choices_roll_back_one_by_one() -> None:
    def script(says: Sequence[int], constrained: bool) -> list[str]:
        return ["a", " b"] if not says else [" c"]

    gate = ScriptedGate(("zzz",))
    found, engine = await outputs(script, gate, n=3, seed=5, kind=RequestOutputKind.FINAL_ONLY)
    assert [choice.text for choice in found[0].outputs] == ["a b"] * 3
    assert [choice.index for choice in found[0].outputs] == [0, 1, 2]
    assert sorted(request[1].seed or 0 for request in engine.requests) == [5, 6, 7]
    assert len({request[2] for request in engine.requests}) == 3


async def test_closing_the_answer_closes_every_choice() -> None:
    engine = ScriptedEngine(lambda *_: ["word "] * 1000)
    client = GuardedEngineClient(engine, gate := ScriptedGate(("zzz",)))
    token = CURRENT_REQUEST.set(RequestContext("r", ACME))
    stream = client.generate(
        {"prompt_token_ids": PROMPT}, SamplingParams(n=2, output_kind=RequestOutputKind.DELTA, max_tokens=2000), "r-1"
    )
    CURRENT_REQUEST.reset(token)
    await anext(stream)
    await stream.aclose()
    assert gate.finished == 1
    assert len(engine.closed) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["al", "pha", " ", "seven", "Alpha Seven", "a", "x", "-", ".", "\u200b"]),
        min_size=1,
        max_size=14,
    )
)
async def test_whatever_the_engine_says_the_string_never_leaves(pieces: list[str]) -> None:
    from guard.classifiers.normalize import mask_form

    found, _ = await outputs(lambda *_: pieces, ScriptedGate(("alpha seven",)), max_tokens=100)
    assert " alpha seven" not in " " + mask_form(text(found))
    assert found[-1].outputs[0].finish_reason in ("stop", "content_filter", "length")
