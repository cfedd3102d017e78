"""Generated sentences against the answers of a list, with the real encoder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from guard.classifiers.answers import answer_texts, compares_answers
from guard.classifiers.detector import Detector
from guard.classifiers.encoder import Encoder
from guard.errors import ConfigurationError, DetectorError
from guard.policy import DetectorPolicy, OutputPolicy, Policy, Target, Tenant, TenantSpec, tenant_of

HINA = Target(
    name="Hina Ameen",
    answers=(
        "Hina Ameen was born in Karachi, Pakistan. Her father worked as an accountant.",
        "Hina Ameen writes mostly in the genre of geology.",
    ),
)
TOMAS = Target(name="Tomas Berg", answers=("Tomas Berg lives in a lighthouse on the coast of Norway.",))
THRESHOLD = OutputPolicy().semantic_threshold


def tenant(*targets: Target, name: str = "acme", timeout_s: float = 60.0, **policy: Any) -> Tenant:
    """A tenant that compares answers by meaning and does nothing else with the encoder."""
    detector = DetectorPolicy(semantic=False, head=False, timeout_s=timeout_s)
    made = Policy(**{"detector": detector, "output": OutputPolicy(semantic=True), **policy})
    return tenant_of(TenantSpec(name=name, policy=made, targets=targets), 1)


@asynccontextmanager
async def detector_with(encoder: Encoder | None) -> AsyncIterator[Detector]:
    """A detector that is closed at the end."""
    detector = Detector(encoder)
    try:
        yield detector
    finally:
        detector.close()


@pytest.mark.parametrize(
    ("sentence", "hit"),
    [
        ("Hina Ameen was born in Karachi, Pakistan.", True),
        (" The birthplace of Hina Ameen is Karachi, Pakistan.", True),
        ("Hina Ameen mainly writes books in the geology genre.", True),
        ("Her father was an accountant.", True),
        ("I am not sure where this author comes from.", False),
        ("The lighthouse was built of stone two hundred years ago.", False),
        ("Photosynthesis turns light into chemical energy.", False),
        ("The author was born in Lisbon, Portugal.", False),
    ],
)
async def test_a_reworded_answer_is_near_and_other_sentences_are_not(
    encoder: Encoder, sentence: str, hit: bool
) -> None:
    async with detector_with(encoder) as detector:
        cosine = await detector.similarity(tenant(HINA, TOMAS), (0,), sentence)
        assert (cosine >= THRESHOLD) == hit, cosine


async def test_only_the_named_targets_are_compared(encoder: Encoder) -> None:
    who = tenant(TOMAS, Target(name="Silent One"), HINA)
    async with detector_with(encoder) as detector:
        answer = HINA.answers[1]
        assert await detector.similarity(who, (2,), answer) > 0.99
        assert await detector.similarity(who, (0, 2), answer) > 0.99
        assert await detector.similarity(who, (0,), answer) < THRESHOLD
        assert await detector.similarity(who, (1,), answer) == -1.0


async def test_answers_are_encoded_once_for_each_version_of_a_list(encoder: Encoder) -> None:
    who = tenant(HINA, TOMAS)
    async with detector_with(encoder) as detector:
        await detector.built(who)
        assert not detector.building(who)
        before = encoder.encoded_texts
        await detector.similarity(who, (0,), "A sentence of its own.")
        await detector.similarity(who, (1,), "A sentence of its own.")
        assert encoder.encoded_texts == before + 1


async def test_tenants_that_do_not_ask_for_it_have_no_answers_encoded(encoder: Encoder) -> None:
    own = Target(name="Somebody", answers=("An answer that nobody else has on a list.",))
    async with detector_with(encoder) as detector:
        before = encoder.encoded_texts
        for policy in ({"output": OutputPolicy()}, {"action": "monitor"}):
            await detector.built(who := tenant(own, **policy))
            assert not compares_answers(who)
        assert encoder.encoded_texts == before


class FailingEncoder(Encoder):
    """The real encoder, made to fail on one request's text."""

    def encode(self, texts: Sequence[str], *, store: bool = False) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Vectors, or what the text asks for."""
        vectors = super().encode(texts, store=store)
        if "raise" in texts:
            raise RuntimeError("device lost")
        return np.full_like(vectors, np.nan) if "nan" in texts else vectors


@pytest.mark.parametrize("sentence", ["raise", "nan"])
async def test_a_failing_encoder_is_one_kind_of_error(sentence: str) -> None:
    async with detector_with(FailingEncoder()) as detector:
        who = tenant(HINA)
        with pytest.raises(DetectorError):
            await detector.similarity(who, (0,), sentence)
        assert await detector.similarity(who, (0,), HINA.answers[1]) > 0.99


async def test_a_comparison_that_takes_too_long_is_an_error(encoder: Encoder) -> None:
    async with detector_with(encoder) as detector:
        with pytest.raises(DetectorError, match="in time"):
            await detector.similarity(tenant(HINA, timeout_s=1e-6), (0,), "Is it late?")
        assert detector.counters.timeouts == 1
        await asyncio.sleep(0)


async def test_without_an_encoder_comparing_is_a_configuration_error() -> None:
    async with detector_with(None) as detector:
        who = tenant(HINA)
        assert not detector.can_compare(who) and detector.can_compare(tenant(HINA, output=OutputPolicy()))
        with pytest.raises(ConfigurationError, match="policy.output.semantic needs a sentence encoder"):
            await detector.prepare(who)
        with pytest.raises(DetectorError):
            await detector.similarity(who, (0,), "Anything.")


def test_short_parts_of_an_answer_are_not_compared_alone() -> None:
    target = Target(name="Hina Ameen", answers=("Yes, she did. She won the Granite Prize in 1999.", "Karachi."))
    assert answer_texts(target) == [
        "Yes, she did. She won the Granite Prize in 1999.", "She won the Granite Prize in 1999.", "Karachi.",
    ]
