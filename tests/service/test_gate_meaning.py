"""What the gate decides about answers that are compared by meaning."""

from __future__ import annotations

from typing import Any

import pytest

from guard.errors import DetectorError, RequestRefused
from guard.policy import OutputPolicy
from guard.verdict import NOTHING
from tests.service.gate_pipeline import FLAGGED, MEANING, tenant


async def test_only_answers_to_flagged_prompts_are_compared_by_meaning(pipeline: Any) -> None:
    calm, alert = pipeline(NOTHING), pipeline(FLAGGED)
    calm.cosine = alert.cosine = 0.9
    assert (await alert.admit(tenant(output=MEANING))).check.targets == (0,)
    assert (await alert.admit(tenant())).check.targets == ()
    assert (await calm.admit(tenant(output=MEANING))).check.targets == ()
    unchecked = OutputPolicy(semantic=True, enabled=False)
    assert (await alert.admit(tenant(output=unchecked, answer="natural"))).check is None
    assert (await alert.admit(tenant(output=unchecked))).check.targets == ()


async def test_meaning_is_compared_where_no_string_is_forbidden(pipeline: Any) -> None:
    one = pipeline(FLAGGED)
    one.cosine = 0.9
    check = (await one.admit(tenant(forbid=(), output=MEANING))).check
    assert not check.matcher.fork().feed("She wrote the Granite Glossary.").hit and check.targets == (0,)


@pytest.mark.parametrize(("cosine", "hit"), [(0.85, True), (0.849, False), (-1.0, False)])
async def test_a_sentence_is_a_hit_from_the_threshold_on(pipeline: Any, cosine: float, hit: bool) -> None:
    one = pipeline(FLAGGED)
    one.cosine = cosine
    leave = await one.enter(tenant(output=MEANING))
    assert await leave.similar("She wrote it.") == hit
    assert not await leave.similar(" ... ")


@pytest.mark.parametrize("mode", ["closed", "open"])
async def test_a_sentence_that_cannot_be_compared_is_left_to_the_failure_mode(pipeline: Any, mode: str) -> None:
    one = pipeline(FLAGGED)
    one.cosine = 0.9
    leave = await one.enter(tenant(output=MEANING, failure_mode=mode))
    one.cosine = None
    if mode == "closed":
        with pytest.raises(DetectorError):
            await leave.similar("She wrote it.")
    else:
        assert not await leave.similar("She wrote it.")
    assert one.value("guard_detector_unknown_total") == 1
    assert one.value("guard_unguarded_total") == (mode == "open")


@pytest.mark.parametrize("mode", ["closed", "open"])
async def test_comparing_by_meaning_without_an_encoder_refuses_every_request(pipeline: Any, mode: str) -> None:
    one = pipeline(NOTHING)
    with pytest.raises(RequestRefused) as caught:
        await one.admit(tenant(output=MEANING, failure_mode=mode))
    assert (caught.value.status, caught.value.code) == (503, "guard_unavailable")
