"""Lists that are new to the process, builds that fail, and tenants that go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from guard.classifiers.builds import Backoff, reason_of
from guard.classifiers.detector import FIRST_WAIT_S, Detector
from guard.classifiers.encoder import Encoder
from guard.errors import DetectorError
from guard.policy import OutputPolicy, Policy, Target, Tenant, TenantSpec, tenant_of
from guard.verdict import UNKNOWN, DecodedPrompt, Verdict
from tests.classifiers.detector_bench import BENIGN, HINA, tenant

SECRET = "Hina Ameen"
QUESTION = "Which author wrote about a drowned town in Canada?"
DESCRIBED = Target(name="Xin Lee Williams", examples=(QUESTION,))
NEVER = Backoff(3600.0, 3600.0)


def prompt(text: str) -> DecodedPrompt:
    """A prompt that is one token."""
    return DecodedPrompt((0,), text, ((0, len(text)),), (False,))


class FlakyEncoder(Encoder):
    """The real encoder, made to fail or to wait on texts of lists."""

    def __init__(self, failures: int = 0, error: Exception | None = None) -> None:
        super().__init__()
        self.failures = failures
        self.error = error or RuntimeError(f"no memory for {SECRET}")
        self.slow: set[str] = set()
        self.stored: list[str] = []

    def encode(self, texts: Sequence[str], *, store: bool = False) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Vectors; a list's texts fail as often as `failures` says."""
        if store and self.failures:
            self.failures -= 1
            raise self.error
        if store:
            self.stored += texts
        vectors = super().encode(texts, store=store)
        if self.slow.intersection(texts):
            time.sleep(1.5)
        return vectors


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s


def named(*targets: Target, name: str = "acme", timeout_s: float = 60.0, index: int = 1) -> Tenant:
    """A tenant that is judged by names and likeness, with few benign prompts."""
    made = tenant(*targets, name=name, benign=BENIGN[:20], head=False, timeout_s=timeout_s)
    return Tenant(made.name, index, made.policy, made.targets, made.benign, made.policy_version, made.list_version)


async def test_a_build_that_failed_is_tried_again_by_the_next_request_after_a_pause() -> None:
    clock, who = Clock(), named(DESCRIBED)
    detector = Detector(FlakyEncoder(failures=2), backoff=NEVER, clock=clock)
    for pause_s in (3600.0, 3600.0):
        verdict = await detector.detect(who, prompt(QUESTION))
        assert verdict == UNKNOWN and verdict.reason == "not_built"
        assert detector.failures() == {1: "RuntimeError"} and detector.failure(who) == "RuntimeError"
        builds = detector.counters.builds
        clock.now_s += 0.5 * pause_s
        assert (await detector.detect(who, prompt(QUESTION))).reason == "not_built"
        assert detector.counters.builds == builds
        clock.now_s += 0.6 * pause_s
    assert [hit.target for hit in (await detector.detect(who, prompt(QUESTION))).hits] == [0]
    assert detector.failures() == {} and detector.failure(who) is None
    assert (detector.counters.builds, detector.counters.build_failures) == (3, 2)
    detector.close()


async def test_a_build_that_failed_is_tried_again_without_a_request() -> None:
    who = named(DESCRIBED)
    detector = Detector(FlakyEncoder(failures=3), backoff=Backoff(0.01, 0.02))
    await detector.built(who)
    assert detector.failures() == {1: "RuntimeError"}
    async with asyncio.timeout(20.0):
        while detector.failures():
            await asyncio.sleep(0.01)
    assert (await detector.detect(who, prompt(QUESTION))).flagged
    assert detector.counters.build_failures == 3
    detector.close()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError(f"bad text {SECRET}"), "RuntimeError"), (DetectorError("values not finite"),
                                                            "DetectorError: values not finite")],
)
async def test_a_failed_build_is_logged_without_the_list(error: Exception, reason: str) -> None:
    detector = Detector(FlakyEncoder(failures=1, error=error), backoff=NEVER)
    with capture_logs() as logs:
        await detector.built(named(Target(name=SECRET), index=7))
    (entry,) = [entry for entry in logs if entry["event"] == "detector_not_built"]
    assert entry == {
        "event": "detector_not_built", "log_level": "error", "part": "detector", "tenant": 7, "reason": reason,
        "attempt": 1, "retry_in_s": 3600.0,
    }
    assert SECRET not in str(logs) and reason_of(error) == reason
    detector.close()


def test_pauses_double_up_to_a_minute() -> None:
    pauses = [Backoff().pause_s(attempts) for attempts in (1, 2, 3, 6, 7, 10_000)]
    assert pauses == [1.0, 2.0, 4.0, 32.0, 60.0, 60.0]


async def test_answers_that_could_not_be_encoded_are_tried_again() -> None:
    clock = Clock()
    policy = Policy(detector=tenant().policy.detector.model_copy(update={"semantic": False, "head": False}),
                    output=OutputPolicy(semantic=True))
    who = tenant_of(TenantSpec(name="acme", policy=policy, targets=(HINA,)), 5)
    detector = Detector(FlakyEncoder(failures=1), backoff=NEVER, clock=clock)
    await detector.built(who)
    assert detector.failures() == {5: "RuntimeError"}
    with pytest.raises(DetectorError, match="could not be compared"):
        await detector.similarity(who, (0,), HINA.answers[0])
    clock.now_s += 4000.0
    assert await detector.similarity(who, (0,), HINA.answers[0]) > 0.99
    assert detector.failures() == {}
    detector.close()


async def test_the_first_request_for_a_list_waits_for_its_meaning(encoder: Encoder) -> None:
    detector = Detector(encoder)
    await detector.warm()
    requests = [detector.detect(named(DESCRIBED), prompt(QUESTION)) for _ in range(8)]
    verdicts = await asyncio.gather(*requests)
    assert all(verdict.flagged for verdict in verdicts) and detector.counters.builds == 1
    detector.close()


async def test_requests_wait_for_a_slow_build_once_and_then_names_hold() -> None:
    encoder = FlakyEncoder()
    slow = [Target(name=f"Slow target number {number}") for number in range(60)]
    encoder.slow.update(target.name for target in slow)
    detector = Detector(encoder)
    who = named(DESCRIBED, Target(name=SECRET), *slow)
    loop = asyncio.get_running_loop()
    start = loop.time()
    verdict = await detector.detect(who, prompt(f"Who is {SECRET}?"))
    assert [hit.target for hit in verdict.hits] == [1]
    assert FIRST_WAIT_S <= loop.time() - start < FIRST_WAIT_S + 2.0
    start = loop.time()
    verdict = await detector.detect(who, prompt(f"Who is {SECRET}?"))
    assert verdict.flagged and loop.time() - start < 1.0 and detector.building(who)
    detector.close()


async def test_the_wait_for_a_slow_build_leaves_time_for_the_verdict() -> None:
    encoder = FlakyEncoder()
    encoder.slow.add(DESCRIBED.name)
    detector = Detector(encoder)
    verdict = await detector.detect(named(DESCRIBED, timeout_s=1.0), prompt(f"Who is {DESCRIBED.name}?"))
    assert verdict.flagged and not verdict.unknown
    detector.close()


async def test_a_verdict_that_takes_too_long_says_so(encoder: Encoder) -> None:
    detector = Detector(encoder)
    verdict = await detector.detect(named(DESCRIBED, timeout_s=1e-6), prompt(QUESTION))
    assert verdict == UNKNOWN and verdict.reason == "timeout" and detector.counters.timeouts == 1
    detector.close()


async def test_a_list_that_a_request_waits_for_is_built_before_a_hundred_others(encoder: Encoder) -> None:
    detector = Detector(encoder)
    await detector.warm()
    others = [named(Target(name=f"Somebody numbered {n}"), name=f"t{n}", index=n) for n in range(100)]
    for other in others:
        await detector.prepare(other)
    verdict = await detector.detect(named(DESCRIBED, index=500), prompt(QUESTION))
    assert verdict.flagged
    assert sum(detector.building(other) for other in others) > 50
    detector.close()


async def test_deleted_tenants_are_forgotten_and_others_stay(encoder: Encoder) -> None:
    detector = Detector(encoder)
    staying, going = named(DESCRIBED, name="stays"), named(Target(name=SECRET), name="goes", index=2)
    for who in (staying, going):
        await detector.built(who)
    waiting = named(Target(name="Not built yet"), name="waits", index=3)
    await detector.prepare(waiting)
    detector.keep_only([staying])
    assert not detector.building(waiting) and len(detector._lists) == 1
    builds = detector.counters.builds
    assert (await detector.detect(staying, prompt(QUESTION))).flagged
    assert detector.counters.builds == builds
    # a request that was admitted before still gets its verdict
    assert (await detector.detect(going, prompt(f"Who is {SECRET}?"))).flagged
    detector.close()


async def test_only_so_many_tenants_are_kept_and_a_dropped_one_is_built_again(encoder: Encoder) -> None:
    detector = Detector(encoder, kept_tenants=2)
    many = [named(Target(name=f"Person {n}"), DESCRIBED, name=f"t{n}", index=n) for n in range(4)]
    for who in many:
        await detector.built(who)
    assert len(detector._lists) == 2
    encoded = encoder.encoded_texts
    assert (await detector.detect(many[0], prompt(QUESTION))).flagged
    assert encoder.encoded_texts <= encoded + 1
    detector.close()


async def test_shipped_benign_prompts_are_encoded_once_for_all_lists() -> None:
    encoder = FlakyEncoder()
    detector = Detector(encoder)
    await detector.warm()
    shared = len(encoder.stored)
    for number in range(3):
        who = tenant(Target(name=f"Person {number}"), name=f"t{number}", benign=(), head=False)
        await detector.built(who)
    assert len(encoder.stored) == shared + 3 and shared > 300
    detector.close()


async def test_a_list_without_an_encoder_is_reported_as_failed() -> None:
    detector = Detector(None)
    verdict = await detector.detect(named(DESCRIBED, index=3), prompt(QUESTION))
    assert verdict.reason == "not_built"
    assert detector.failures() == {3: "the detector has no sentence encoder"}
    detector.close()


async def test_a_large_list_is_compiled_once_beside_the_event_loop(encoder: Encoder) -> None:
    detector = Detector(encoder)
    names = [f"Person numbered {n}" for n in range(5000)]
    names[4500], names[12] = "Zofia Kwiatkowska", "Tomas Berg"
    who = tenant(*(Target(name=name) for name in names), semantic=False, head=False)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    verdicts: list[Verdict] = await asyncio.gather(
        *(detector.detect(who, prompt(f"Who is {name}?")) for name in ("Tomas Berg", "Zofia Kwiatkowska"))
    )
    ticking.cancel()
    assert [[hit.target for hit in verdict.hits] for verdict in verdicts] == [[12], [4500]]
    assert ticks > 3 and len(detector._lists) == 1
    detector.close()
