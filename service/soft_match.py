"""Soft match while decoding, for all tenants of a server: token biases that keep answers away from a target's words.

Soft is soft: nothing waits for it and nothing fails with it. The words of the vocabulary are encoded once, in the
background, when a tenant first asks for them, and come back from the encoder's store after a restart (minutes the first
time, seconds later); the words of a target once for each version of a list. Until then there is no bias.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import structlog

from guard.classifiers.build_queue import BuildQueue, Work
from guard.classifiers.builds import Backoff, reason_of
from guard.classifiers.forgetlist import Encode
from guard.classifiers.soft_words import (
    NearWords,
    WordTokens,
    answer_words,
    asked_words,
    near_words,
    penalties,
    word_tokens,
)
from guard.errors import DetectorError
from guard.policy import Target, Tenant

Vectors = np.ndarray[Any, np.dtype[np.float32]]
Result = TypeVar("Result")
# targets kept, of all tenants: about 8 KB each
KEPT_TARGETS = 4096

log = structlog.get_logger("guard.soft_match")


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    tokens: WordTokens
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class _Place:
    """One target of one version of a list."""

    tenant: str
    list_version: str
    target: int


class SoftMatch:
    """One per server; call from one event loop. `close` when done."""

    def __init__(
        self, background: tuple[BuildQueue, Encode] | None, tokenizer: Any, *, kept_targets: int = KEPT_TARGETS,
        backoff: Backoff | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`background` is the queue and the encoding of `Detector.background()`; None: there is never a bias.

        What could not be built is tried again by a later request, after the pauses of `backoff`.
        """
        self._background, self._tokenizer = background, tokenizer
        self._most = kept_targets
        self._backoff, self._clock = backoff or Backoff(), clock
        self._vocabulary: _Attempt[_Vocabulary] | None = None
        self._targets: OrderedDict[_Place, _Attempt[NearWords]] = OrderedDict()

    def prepare(self, tenant: Tenant) -> None:
        """Begin with the words of the vocabulary, if the tenant asks for soft matching. Cheap when already known."""
        if tenant.policy.constraint.enabled and tenant.policy.constraint.soft > 0.0:
            self._words()

    async def penalties(self, tenant: Tenant, targets: Sequence[int], prompt_text: str) -> dict[int, float]:
        """Token biases (at most 512, none above 0) against the answer words of `targets`, indices of the list.

        `prompt_text` is what the user asked: its words are free. Empty where soft matching is off or not ready yet.
        """
        constraint = tenant.policy.constraint
        if not constraint.enabled or constraint.soft <= 0.0:
            return {}
        try:
            words = self._words()
            near = [found for target in targets if (found := self._near(tenant, target)) is not None]
            if words is None or not near:
                return {}
            return penalties(words.tokens, near, constraint.soft, prompt_text)
        # the answer goes on without; the text of an error may hold a word of the list
        except Exception as error:  # noqa: BLE001
            log.warning("soft_match_failed", tenant=tenant.index, reason=reason_of(error))
            return {}

    async def built(self, tenant: Tenant, targets: Sequence[int]) -> None:
        """Wait until the words of `targets` are there, or an attempt has failed; for tests and measurements."""
        self.prepare(tenant)
        if self._vocabulary is None:
            return
        await self._vocabulary.wait()
        for target in targets:
            self._near(tenant, target)
        for target in targets:
            attempt = self._targets.get(_Place(tenant.name, tenant.list_version, target))
            if attempt is not None:
                await attempt.wait()

    def keep_only(self, tenants: Collection[Tenant]) -> None:
        """Forget the words of all tenants but `tenants`."""
        names = {tenant.name for tenant in tenants}
        for place in [place for place in self._targets if place.tenant not in names]:
            self._targets.pop(place).drop()

    def close(self) -> None:
        """Stop background work."""
        self.keep_only(())
        if self._vocabulary is not None:
            self._vocabulary.drop()

    def _words(self) -> _Vocabulary | None:
        if self._background is None:
            return None
        if self._vocabulary is None:
            queue, encode = self._background
            self._vocabulary = _Attempt(
                queue, "vocabulary", lambda: _encode_vocabulary(encode, self._tokenizer), self._backoff, self._clock
            )
        return self._vocabulary.look()

    def _near(self, tenant: Tenant, target: int) -> NearWords | None:
        place = _Place(tenant.name, tenant.list_version, target)
        attempt = self._targets.get(place)
        if attempt is None:
            if self._background is None or self._vocabulary is None:
                return None
            queue, encode = self._background
            vocabulary, listed = self._vocabulary, tenant.targets[target]
            attempt = _Attempt(
                queue, "target", lambda: _encode_target(encode, vocabulary.result, listed), self._backoff, self._clock
            )
            self._targets[place] = attempt
            while len(self._targets) > self._most:
                self._targets.popitem(last=False)[1].drop()
        self._targets.move_to_end(place)
        # targets that were asked for before the vocabulary is there begin as soon as it is
        return attempt.look(after=self._vocabulary)


def _encode_vocabulary(encode: Encode, tokenizer: Any) -> Work[_Vocabulary]:
    tokens = yield from word_tokens(tokenizer)
    vectors = yield from encode(tokens.words)
    return _Vocabulary(tokens, vectors)


def _encode_target(encode: Encode, words: _Vocabulary | None, target: Target) -> Work[NearWords]:
    # an attempt begins only after the vocabulary's has ended well
    if words is None:
        raise DetectorError("the words of the vocabulary are not there")
    answers = yield from encode(answer_words(target))
    return (yield from near_words(words.tokens.words, words.vectors, answers, asked_words(target)))


class _Attempt(Generic[Result]):
    """Something that is built in the background, and tried again when it is looked for after a pause.

    Unlike `builds.Build` it is never in a hurry, and its failure closes no tenant.
    """

    def __init__(
        self, queue: BuildQueue, part: str, make: Callable[[], Work[Result]], backoff: Backoff,
        clock: Callable[[], float],
    ) -> None:
        self.result: Result | None = None
        self._queue, self._part, self._make = queue, part, make
        self._backoff, self._clock = backoff, clock
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._retry_at = 0.0

    def look(self, after: _Attempt[Any] | None = None) -> Result | None:
        """The result; without one, begin to build it once `after` has ended, unless that runs or failed lately."""
        if self.result is None and self._task is None and (not self._failures or self._clock() >= self._retry_at):
            self._task = asyncio.get_running_loop().create_task(self._build(after))
        return self.result

    async def wait(self) -> None:
        """Wait until the attempt that runs has ended, well or not."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def drop(self) -> None:
        """Give up an attempt that runs."""
        if self._task is not None:
            self._task.cancel()

    async def _build(self, after: _Attempt[Any] | None) -> None:
        try:
            if after is not None:
                await after.wait()
                if after.result is None:
                    return
            # cancelling the task cancels the future, which drops the job
            self.result = await asyncio.wrap_future(self._queue.submit(self._make()).future)
        # tried again later; nobody depends on it
        except Exception as error:  # noqa: BLE001
            self._failures += 1
            pause_s = self._backoff.pause_s(self._failures)
            self._retry_at = self._clock() + pause_s
            log.warning("soft_match_not_built", part=self._part, reason=reason_of(error), retry_in_s=pause_s)
        finally:
            self._task = None
