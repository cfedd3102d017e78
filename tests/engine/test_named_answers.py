"""Answers that name a target although their prompt did not, and where answers of ignorance end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from vllm.sampling_params import RequestOutputKind

from tests.engine.scripted_answers import PROMPT, ScriptedEngine, ScriptedGate, outputs, text

NAMED = frozenset({0})
WORDINGS = ("I do not know", "… I am not sure by whom.")


def naming(says: Sequence[int], constrained: bool) -> list[str]:
    """Names the target first; as a flagged answer it opens as the gate asked."""
    if constrained and says:
        return [" …", " I am not sure", " by whom.", " Other", "."]
    if constrained:
        return ["I do", " not", " know", ".", " And", "."]
    return ["It was", " founded by", " Alpha", " Seven", "."]


async def test_an_answer_that_is_not_sent_yet_begins_anew_as_a_flagged_one() -> None:
    gate = ScriptedGate(("alpha seven",), names=NAMED, wordings=WORDINGS)
    found, engine = await outputs(naming, gate, kind=RequestOutputKind.FINAL_ONLY)
    assert text(found) == "I do not know."
    assert found[-1].outputs[0].finish_reason == "stop"
    assert gate.said == [""]
    assert [request[0]["prompt_token_ids"] for request in engine.requests] == [PROMPT, PROMPT]
    assert gate.counts["rollbacks"] == 0 and gate.counts["filtered"] == 0


async def test_a_sentence_that_was_sent_in_part_is_ended_as_one_of_not_knowing() -> None:
    gate = ScriptedGate(("alpha seven",), names=NAMED, wordings=("… I am not sure by whom.",))
    found, _ = await outputs(naming, gate)
    assert text(found) == "It was founded by … I am not sure by whom."
    assert gate.said == ["It was founded by"]
    assert found[-1].outputs[0].finish_reason == "stop"


async def test_past_its_first_sentence_only_the_name_is_kept_out() -> None:
    def script(says: Sequence[int], constrained: bool) -> list[str]:
        return [" others", "."] if constrained else ["Oil is old. ", "It was sold by", " Alpha", " Seven"]

    gate = ScriptedGate(("alpha seven",), names=NAMED, wordings=WORDINGS)
    for kind in (RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY):
        gate.said.clear()
        found, _ = await outputs(script, gate, kind=kind)
        assert text(found) == "Oil is old. It was sold by others."
        assert gate.said == []
    assert gate.counts["rollbacks"] == 2


async def test_a_forbidden_string_that_is_no_name_is_rolled_back_as_before() -> None:
    def script(says: Sequence[int], constrained: bool) -> list[str]:
        return [" one."] if constrained else ["It is", " alpha", " seven"]

    gate = ScriptedGate(("alpha seven",), wordings=WORDINGS)
    found, _ = await outputs(script, gate)
    assert text(found) == "It is one."
    assert gate.said == [] and gate.counts["rollbacks"] == 1


async def test_an_answer_that_cannot_be_flagged_ends() -> None:
    gate = ScriptedGate(("alpha seven",), names=NAMED, wordings=WORDINGS, resumes=False)
    found, _ = await outputs(naming, gate, kind=RequestOutputKind.FINAL_ONLY)
    assert found[-1].outputs[0].finish_reason == "content_filter"
    assert "alpha" not in text(found).casefold()


@pytest.mark.parametrize("n", [1, 3])
async def test_every_choice_is_flagged_by_itself(n: int) -> None:
    gate = ScriptedGate(("alpha seven",), names=NAMED, wordings=WORDINGS)

    def script(says: Sequence[int], constrained: bool) -> list[str]:
        return naming(says, constrained)

    found, engine = await outputs(script, gate, kind=RequestOutputKind.FINAL_ONLY, n=n)
    assert len(found[-1].outputs) == n
    # the scripted engine tells only its first request apart: later ones are constrained from the start
    assert all("alpha" not in choice.text.casefold() for choice in found[-1].outputs)


@pytest.mark.parametrize("drafts", [None, object()])
async def test_a_bias_is_given_to_vllm_unless_it_drafts_tokens(drafts: object) -> None:
    gate = ScriptedGate(("alpha seven",), bias={7: 2.0})
    engine = ScriptedEngine(lambda *_: ["one", "."])
    engine.vllm_config.speculative_config = drafts
    await outputs(engine.script, gate, engine=engine)
    assert engine.requests[0][1].logit_bias == ({7: 2.0} if drafts is None else None)
