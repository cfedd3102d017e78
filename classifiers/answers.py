"""Is a generated sentence, by its meaning, an answer on the forget-list? Cosine similarity of sentence vectors.

Answers and their single sentences are encoded once for each version of a list; a request costs one vector for each
sentence that it generates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guard.classifiers.build_queue import Work
from guard.classifiers.builds import Build, Workshop
from guard.classifiers.versions import KEPT_TENANTS, Versions
from guard.errors import DetectorError
from guard.policy import Target, Tenant
from guard.sentences import split

Vectors = np.ndarray[Any, np.dtype[np.float32]]
# a shorter part of an answer ("Yes, he did.") is said of anything
_MIN_WORDS = 4


def compares_answers(tenant: Tenant) -> bool:
    """Whether sentences of any answer to this tenant can ever be compared by meaning."""
    policy = tenant.policy
    checked = policy.output.enabled and policy.output.semantic
    return tenant.listed and checked and policy.action == "forget" and policy.detector.mode != "never"


def answer_texts(target: Target) -> list[str]:
    """The answers of a target, and each sentence of an answer that is long enough to mean something by itself."""
    texts: dict[str, None] = {}
    for answer in target.answers:
        texts.setdefault(answer.strip())
        for sentence in split(answer):
            if len(sentence.split()) >= _MIN_WORDS:
                texts.setdefault(sentence.strip())
    return list(texts)


@dataclass(frozen=True, slots=True)
class AnswerVectors:
    """Unit vectors [n, d] of one list's answers; `rows` holds the half-open range of each target's vectors."""

    vectors: Vectors
    rows: tuple[tuple[int, int], ...]

    def similarity(self, vector: Vectors, targets: Iterable[int]) -> float:
        """Largest cosine of a unit vector [d] to an answer of `targets`; -1 without any.

        Raises DetectorError on NaN.
        """
        parts = [self.vectors[slice(*self.rows[target])] @ vector for target in targets]
        scores = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        if not np.isfinite(scores).all():
            raise DetectorError("the sentence encoder gave values that are not finite")
        return float(scores.max(initial=-1.0))


class AnswerComparer:
    """Keeps the answer vectors of tenants; call from one event loop.

    `encode_list` is work in the background; `encode` gives the vectors of a request's texts within some seconds.
    """

    def __init__(
        self, workshop: Workshop, encode_list: Callable[[Sequence[str]], Work[Vectors]],
        encode: Callable[[Sequence[str], float], Awaitable[Vectors]], *, kept_tenants: int = KEPT_TENANTS,
    ) -> None:
        self._workshop, self._encode_list, self._encode = workshop, encode_list, encode
        self._builds: Versions[Build[AnswerVectors]] = Versions(Build.drop, tenants=kept_tenants)

    def prepare(self, tenant: Tenant, *, urgent: bool = False) -> Build[AnswerVectors]:
        """Start (or find) the encoding of a list's answers."""
        build = self._builds.use(tenant, tenant.list_version)
        if build is None:
            build = Build(self._workshop, "answers", tenant.index, lambda: self._work(tenant))
            self._builds.add(tenant, tenant.list_version, build)
        build.start(urgent=urgent)
        return build

    def building(self, tenant: Tenant) -> bool:
        """Whether the answers of this tenant's list are being encoded."""
        build = self._builds.look(tenant, tenant.list_version)
        return build is not None and build.running

    def all_building(self) -> set[int]:
        """Indices of the tenants the answers of whose current list are being encoded."""
        return {index for index, build in self._builds.newest() if build.running}

    def failures(self) -> dict[int, str]:
        """By tenant index: why the answers of the current list are not encoded, where that failed."""
        return {index: build.failure for index, build in self._builds.newest() if build.failure is not None}

    async def similarity(self, tenant: Tenant, targets: Sequence[int], sentence: str) -> float:
        """Largest cosine of `sentence` to an answer of `targets`. Raises TimeoutError or DetectorError."""
        timeout_s = tenant.policy.detector.timeout_s
        async with asyncio.timeout(timeout_s):
            build = self.prepare(tenant, urgent=True)
            await build.wait()
            if build.result is None:
                raise DetectorError(f"the answers of the list are not encoded: {build.failure}")
            vectors = await self._encode([sentence.strip()], timeout_s)
        return build.result.similarity(vectors[0], targets)

    def keep_only(self, names: Collection[str]) -> None:
        """Forget the answers of all tenants but those of `names`."""
        self._builds.keep_only(names)

    def close(self) -> None:
        """Stop background work."""
        self._builds.keep_only(())

    def _work(self, tenant: Tenant) -> Work[AnswerVectors]:
        texts: list[str] = []
        rows: list[tuple[int, int]] = []
        for target in tenant.targets:
            own = answer_texts(target)
            rows.append((len(texts), len(texts) + len(own)))
            texts += own
        vectors = yield from self._encode_list(texts)
        return AnswerVectors(vectors, tuple(rows))
