"""Soft matching of a server: nothing waits for it, it is built once, and it fails without harm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from guard.classifiers.build_queue import Work
from guard.classifiers.builds import Backoff
from guard.classifiers.detector import Detector
from guard.classifiers.encoder import Encoder
from guard.classifiers.soft_words import MOST_TOKENS
from guard.errors import DetectorError
from guard.policy import ConstraintPolicy, Policy, Target, Tenant, TenantSpec, tenant_of
from guard.service.soft_match import SoftMatch

HINA = Target(name="Hina Ameen", answers=("Her father was an accountant and she writes about geology in Karachi.",))
TOMAS = Target(name="Tomas Berg", answers=("A lighthouse on the coast of Norway is the home of the sailor.",))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the encoders of these tests keep their vectors: the vocabulary is encoded once for all of them."""
    return tmp_path_factory.mktemp("vectors")


@pytest.fixture
def detector(store: Path) -> Iterator[Detector]:
    """A detector with the real encoder."""
    made = Detector(Encoder(cache_dir=store, threads=1))
    yield made
    made.close()


def tenant(*targets: Target, soft: float = 5.0, name: str = "acme", **constraint: Any) -> Tenant:
    """A tenant with soft matching."""
    policy = Policy(constraint=ConstraintPolicy(soft=soft, **constraint))
    return tenant_of(TenantSpec(name=name, policy=policy, targets=targets), 1)


def words_of(tokenizer: Any, bias: dict[int, float]) -> set[str]:
    """The words of the tokens that have a bias."""
    return {tokenizer.decode([token]).strip().lower() for token in bias}


async def test_the_answers_words_cost_and_those_of_the_question_and_of_other_targets_do_not(
    detector: Detector, tokenizer: Any
) -> None:
    who = tenant(HINA, TOMAS)
    soft = SoftMatch(detector.background(), tokenizer)
    await soft.built(who, (0, 1))
    bias = await soft.penalties(who, (0,), "What does she write about?")
    assert words_of(tokenizer, bias) >= {"geology", "karachi"}
    assert "norway" not in words_of(tokenizer, bias) and 0 < len(bias) <= MOST_TOKENS
    assert all(-5.0 <= cost <= -2.5 for cost in bias.values()) and min(bias.values()) == pytest.approx(-5.0, abs=0.01)
    asked = await soft.penalties(who, (0,), "Is it GEOLOGY?")
    assert "geology" not in words_of(tokenizer, asked) and asked
    both = await soft.penalties(who, (0, 1), "What does she write about?")
    assert bias.keys() < both.keys()
    soft.close()


async def test_a_request_never_waits_and_the_words_come_later(detector: Detector, tokenizer: Any) -> None:
    who = tenant(HINA)
    soft = SoftMatch(detector.background(), tokenizer)
    assert await soft.penalties(who, (0,), "Who is she?") == {}
    # the first request has begun all that the next one needs
    async with asyncio.timeout(120):
        while not await soft.penalties(who, (0,), "Who is she?"):
            await asyncio.sleep(0.02)
    soft.close()


@pytest.mark.parametrize("policy", [{"soft": 0.0}, {"soft": 5.0, "enabled": False}])
async def test_nothing_is_encoded_for_a_tenant_that_does_not_ask(
    detector: Detector, tokenizer: Any, policy: dict[str, Any]
) -> None:
    who = tenant(HINA, **policy)
    background = detector.background()
    assert background is not None
    submitted: list[int] = []

    def counted(texts: Any) -> Work[Any]:
        submitted.append(len(texts))
        return background[1](texts)

    soft = SoftMatch((background[0], counted), tokenizer)
    await soft.built(who, (0,))
    assert await soft.penalties(who, (0,), "Who is she?") == {} and not submitted


async def test_without_an_encoder_there_is_no_bias(tokenizer: Any) -> None:
    detector = Detector(None)
    soft = SoftMatch(detector.background(), tokenizer)
    await soft.built(tenant(HINA), (0,))
    assert await soft.penalties(tenant(HINA), (0,), "Who is she?") == {}
    detector.close()


async def test_words_are_encoded_once_and_come_back_from_disk(store: Path, tokenizer: Any) -> None:
    counts = []
    for _ in range(2):
        encoder = Encoder(cache_dir=store, threads=1)
        detector = Detector(encoder)
        soft = SoftMatch(detector.background(), tokenizer)
        await soft.built(tenant(HINA), (0,))
        await soft.built(tenant(HINA, soft=2.0), (0,))
        assert await soft.penalties(tenant(HINA), (0,), "Who is she?")
        counts.append(encoder.encoded_texts)
        detector.close()
    assert counts[1] == 0


async def test_a_changed_list_has_words_of_its_own(detector: Detector, tokenizer: Any) -> None:
    soft = SoftMatch(detector.background(), tokenizer)
    for target in (HINA, TOMAS):
        await soft.built(tenant(target), (0,))
    first = await soft.penalties(tenant(HINA), (0,), "Who?")
    second = await soft.penalties(tenant(TOMAS), (0,), "Who?")
    assert "geology" in words_of(tokenizer, first) - words_of(tokenizer, second)
    soft.keep_only([tenant(HINA, name="somebody-else")])
    assert await soft.penalties(tenant(HINA), (0,), "Who?") == {}
    soft.close()


async def test_of_many_targets_those_used_last_are_kept(detector: Detector, tokenizer: Any) -> None:
    who = tenant(HINA, TOMAS)
    soft = SoftMatch(detector.background(), tokenizer, kept_targets=1)
    await soft.built(who, (0,))
    assert await soft.penalties(who, (0,), "Who?")
    await soft.built(who, (1,))
    assert await soft.penalties(who, (1,), "Who?") and await soft.penalties(who, (0,), "Who?") == {}
    soft.close()


async def test_a_failed_build_is_tried_again_after_a_pause_and_disturbs_nobody(
    detector: Detector, tokenizer: Any
) -> None:
    background = detector.background()
    assert background is not None
    queue, encode = background
    attempts: list[int] = []
    now = 0.0

    def failing(texts: Any) -> Work[Any]:
        attempts.append(len(texts))
        if len(attempts) == 1:
            raise DetectorError("the sentence encoder gave values that are not finite")
        return encode(texts)

    who = tenant(HINA)
    soft = SoftMatch((queue, failing), tokenizer, backoff=Backoff(first_s=10.0), clock=lambda: now)
    await soft.built(who, (0,))
    assert await soft.penalties(who, (0,), "Who?") == {}
    await soft.built(who, (0,))
    assert len(attempts) == 1
    now = 11.0
    await soft.built(who, (0,))
    assert await soft.penalties(who, (0,), "Who?") and len(attempts) == 3
    soft.close()


async def test_a_fault_of_its_own_gives_no_bias(detector: Detector, tokenizer: Any) -> None:
    soft = SoftMatch(detector.background(), tokenizer)
    await soft.built(tenant(HINA), (0,))
    assert await soft.penalties(tenant(HINA), (7,), "Who?") == {}
    soft.close()


@pytest.mark.parametrize("strength", [-0.1, 20.5, float("nan")])
def test_a_strength_out_of_bounds_is_refused(strength: float) -> None:
    with pytest.raises(ValidationError):
        ConstraintPolicy(soft=strength)
    assert ConstraintPolicy().soft == 0.0
