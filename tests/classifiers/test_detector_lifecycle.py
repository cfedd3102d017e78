"""The detector while lists change, the encoder fails, many requests come at once, and when it is closed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from guard.classifiers.encoder import Encoder
from guard.policy import Target
from guard.verdict import NOTHING, UNKNOWN, Verdict
from tests.classifiers.detector_bench import BENIGN, HINA, NAMELESS, Bench, tenant


class BrokenEncoder(Encoder):
    """The real encoder, made to fail on requests once the list is built."""

    def __init__(self, failure: str) -> None:
        super().__init__()
        self.failure = failure
        self.armed = False

    def encode(self, texts: Sequence[str], *, store: bool = False) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Vectors, or the failure when armed."""
        vectors = super().encode(texts, store=store)
        if self.armed and self.failure == "raises":
            raise RuntimeError(f"device lost at {texts}")
        if self.armed and self.failure == "sleeps":
            time.sleep(1.0)
        if self.armed and self.failure == "nan":
            return np.full_like(vectors, np.nan)
        return vectors


def test_tenants_that_cannot_need_the_encoder_never_load_it() -> None:
    encoder = Encoder()
    lonely = Bench(encoder)
    assert lonely.detect(tenant(), "Who is Hina Ameen?") == NOTHING
    assert lonely.detect(tenant(HINA, mode="always"), "x").flagged
    assert lonely.detect(tenant(HINA, semantic=False, head=False), "Hina Ameen").flagged
    lonely.close()
    assert encoder.encoded_texts == 0


@pytest.mark.parametrize("failure", ["raises", "nan", "sleeps"])
def test_a_failing_encoder_gives_an_unknown_verdict(failure: str) -> None:
    encoder = BrokenEncoder(failure)
    broken = Bench(encoder)
    who = tenant(Target(name="Hina Ameen"), head=False, benign=BENIGN[:30], timeout_s=0.5)
    broken.run(broken.detector.built(who))
    encoder.armed = True
    start = time.monotonic()
    with capture_logs() as logs:
        verdict = broken.detect(who, "A prompt without any name in it")
    assert verdict == UNKNOWN and verdict.reason == ("timeout" if failure == "sleeps" else "error")
    assert "without any name" not in str(logs)
    assert time.monotonic() - start < 0.9
    broken.close()


def test_without_an_encoder_the_verdict_is_unknown_not_clean() -> None:
    blind = Bench(None)
    assert blind.detect(tenant(HINA), "Nice weather") == UNKNOWN
    assert blind.detector.failure(tenant(HINA)) is not None
    assert blind.detect(tenant(HINA, semantic=False, head=False), "Nice weather") == NOTHING
    blind.close()


def test_a_new_list_holds_at_once_and_the_old_one_stays_valid(encoder: Encoder) -> None:
    changing = Bench(encoder)
    old = tenant(Target(name="Hina Ameen"), head=False)
    new = tenant(Target(name="Xin Lee Williams"), head=False)
    changing.run(changing.detector.built(old))

    async def swap() -> tuple[bool, Verdict, Verdict, Verdict]:
        await changing.detector.prepare(new)
        building = changing.detector.building(new)
        prompts = [changing.prompt(f"Who is {name}?") for name in ("Xin Lee Williams", "Hina Ameen")]
        named = await changing.detector.detect(new, prompts[0])
        running = await changing.detector.detect(old, prompts[1])
        await changing.detector.built(new)
        return building, named, running, await changing.detector.detect(old, prompts[1])

    building, named, running, later = changing.run(swap())
    assert building and named.flagged and running.flagged and later.flagged
    assert not changing.detector.building(new)
    changing.close()


def test_old_targets_are_recognised_by_meaning_while_a_longer_list_is_built(encoder: Encoder) -> None:
    changing = Bench(encoder)
    described = Target(name="Xin Lee Williams", examples=("Which author wrote about a drowned town in Canada?",))
    old = tenant(described, head=False)
    longer = tenant(Target(name="Somebody Else"), described, head=False)
    changing.run(changing.detector.built(old))

    async def ask_while_building() -> tuple[bool, Verdict]:
        await changing.detector.prepare(longer)
        prompt = changing.prompt("Which author wrote about a drowned town in Canada?")
        verdict = await changing.detector.detect(longer, prompt)
        return changing.detector.building(longer), verdict

    _, verdict = changing.run(ask_while_building())
    assert [hit.target for hit in verdict.hits] == [1]
    changing.close()


def test_unchanged_texts_of_a_new_list_are_not_encoded_again(encoder: Encoder) -> None:
    changing = Bench(encoder)
    changing.run(changing.detector.built(tenant(HINA, head=False)))
    before = encoder.encoded_texts
    changing.run(changing.detector.built(tenant(HINA, Target(name="A brand new name"), head=False)))
    assert encoder.encoded_texts == before + 1
    changing.close()


def test_many_requests_at_once_share_the_encoder_and_keep_their_own_verdicts(bench: Bench) -> None:
    who = tenant(HINA)
    bench.run(bench.detector.built(who))
    prompts = [bench.prompt(NAMELESS if n % 2 else f"What is {n} times {n}?") for n in range(24)]

    async def ask() -> list[Verdict]:
        return list(await asyncio.gather(*(bench.detector.detect(who, prompt) for prompt in prompts)))

    assert [verdict.flagged for verdict in bench.run(ask())] == [bool(n % 2) for n in range(24)]


def test_closing_ends_the_worker_threads(encoder: Encoder) -> None:
    before = {thread.name for thread in threading.enumerate()}
    made = Bench(encoder)
    made.detect(tenant(Target(name="Hina Ameen"), head=False, benign=BENIGN[:30]), "hello")
    made.close()
    names = {thread.name for thread in threading.enumerate() if thread.is_alive()} - before
    assert not any(name.startswith("guard-encoder") for name in names)
