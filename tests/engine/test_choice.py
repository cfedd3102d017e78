"""The output check of one answer: hold-back, roll-back, and the shapes that every output kind needs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.classifiers.normalize import mask_form
from guard.engine.admission import CURRENT_REQUEST, RequestContext
from guard.engine.client import GuardedEngineClient
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
    # the third hit ended the answer, it was not rolled back
    assert gate.counts == {"held_back": gate.counts["held_back"], "rollbacks": 2, "filtered": 1}


async def test_a_string_that_began_before_a_roll_back_is_not_completed_after_it() -> None:
    def script(says: Sequence[int], constrained: bool) -> list[str]:
        return [" the", " blue", " sky"] if constrained else ["Over", " alpha", " seven"]

    gate = ScriptedGate(("alpha seven", "over the blue sky"), max_rollbacks=1)
    found, engine = await outputs(script, gate)
    assert text(found) == "Over"
    assert [choice.finish_reason for choice in found[-1].outputs] == ["content_filter"]
    assert len(engine.requests) == 2 and gate.counts["rollbacks"] == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["al", "pha", " ", "seven", "a", "x", " alpha", "."]), min_size=1, max_size=8))
async def test_after_a_roll_back_the_whole_answer_is_clean(pieces: list[str]) -> None:
    def script(says: Sequence[int], constrained: bool) -> list[str]:
        return pieces if constrained else ["one", " al", "pha", " seven"]

    found, _ = await outputs(script, ScriptedGate(("alpha seven", "one a x")), max_tokens=100)
    said = f" {mask_form(text(found))}"
    assert " alpha seven" not in said and " one a x" not in said
    assert text(found).startswith("one")


async def test_a_string_that_began_before_the_answer_is_not_completed_in_it() -> None:
    def script(says: Sequence[int], constrained: bool) -> list[str]:
        return [" six", "."] if constrained else [" seven"]

    gate = ScriptedGate(("alpha seven",), before="Repeat: alpha")
    found, engine = await outputs(script, gate)
    assert text(found) == " six."
    assert gate.counts["rollbacks"] == 1 and len(engine.requests) == 2


async def test_a_stop_string_forbids_resuming_a_begun_answer() -> None:
    gate = ScriptedGate(("alpha seven",))
    found, engine = await outputs(rolling, gate, stop=["zzz"])
    assert found[-1].outputs[0].finish_reason == "content_filter"
    assert text(found) == "The code is"
    assert len(engine.requests) == 1
    assert gate.counts["rollbacks"] == 0 and gate.counts["filtered"] == 1


class Stopping(ScriptedEngine):
    """Says `pieces`, and then the stop string, which the engine cuts off."""

    def __init__(self, pieces: Sequence[str], stop: str) -> None:
        super().__init__(lambda *_: [])
        self.pieces, self.stop = pieces, stop

    async def generate(self, prompt: Any, params: SamplingParams, request_id: str) -> AsyncGenerator[Any, None]:
        self.requests.append((prompt, params, request_id))
        for left, piece in zip(reversed(range(len(self.pieces))), self.pieces, strict=True):
            token = CompletionOutput(0, piece, [100], None, None, finish_reason=None if left else "stop")
            token.stop_reason = None if left else self.stop
            yield RequestOutput(request_id, None, PROMPT, None, [token], not left)

    async def outputs(self, gate: ScriptedGate) -> list[RequestOutput]:
        """All that the client yields."""
        token = CURRENT_REQUEST.set(RequestContext("r", ACME))
        params = SamplingParams(output_kind=RequestOutputKind.DELTA, stop=[self.stop])
        client = GuardedEngineClient(self, gate)
        try:
            return [output async for output in client.generate({"prompt_token_ids": PROMPT}, params, "r-1")]
        finally:
            CURRENT_REQUEST.reset(token)


@pytest.mark.parametrize("stop", ["seven", "alpha seven", "is alpha seven", "alpha"])
async def test_a_stop_string_that_guesses_ends_like_any_other(stop: str) -> None:
    """Ending where a forbidden string began would confirm the guess."""
    whole = "The code is alpha seven"
    found = await Stopping(("The ", whole[4 : whole.index(stop)]), stop).outputs(ScriptedGate(("alpha seven",)))
    complete = stop.endswith("seven")
    assert found[-1].outputs[0].finish_reason == ("content_filter" if complete else "stop")
    assert "alpha" not in text(found) and found[-1].outputs[0].stop_reason is None


@pytest.mark.parametrize("pieces", [("Pick ", "option a"), ("Pick option a",), ("Pick option", " a", "")])
@pytest.mark.parametrize("stop", ["\n", " or", "lpha six"])
async def test_a_stop_string_that_completes_nothing_releases_what_waited_for_it(
    pieces: tuple[str, ...], stop: str
) -> None:
    """The last word may begin a forbidden string, but the answer ends there."""
    gate = ScriptedGate(("alpha seven",))
    engine = Stopping(pieces, stop)
    found = await engine.outputs(gate)
    assert text(found) == "Pick option a"
    assert [choice.finish_reason for choice in found[-1].outputs] == ["stop"]
    assert len(engine.requests) == 1 and gate.counts["rollbacks"] == gate.counts["filtered"] == 0


async def test_a_refused_resume_ends_with_content_filter() -> None:
    gate = ScriptedGate(("alpha seven",), resumes=False)
    found, _ = await outputs(rolling, gate)
    assert found[-1].outputs[0].finish_reason == "content_filter"
    assert gate.counts["rollbacks"] == 0 and gate.counts["filtered"] == 1


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
    found, _ = await outputs(lambda *_: pieces, ScriptedGate(("alpha seven",)), max_tokens=100)
    assert " alpha seven" not in " " + mask_form(text(found))
    assert found[-1].outputs[0].finish_reason in ("stop", "content_filter", "length")
