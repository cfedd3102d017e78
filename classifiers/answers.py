"""Is a generated sentence, by its meaning, an answer on the forget-list? Cosine similarity of sentence vectors.

Answers and their single sentences are encoded once for each version of a list; a request costs one vector for each
sentence that it generates.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from guard.errors import DetectorError
from guard.policy import Target, Tenant
from guard.sentences import split

Vectors = np.ndarray[Any, np.dtype[np.float32]]
# versions of one tenant's list kept: requests admitted under an old one finish with it
KEPT_VERSIONS = 3
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
    """Keeps the answer vectors of all tenants; call from one event loop.

    `encode_list` blocks and runs in `executor`; `encode` gives the vectors of a request's texts within some seconds.
    """

    def __init__(
        self, encode_list: Callable[[Sequence[str]], Vectors],
        encode: Callable[[Sequence[str], float], Awaitable[Vectors]], executor: Executor,
    ) -> None:
        self._encode_list, self._encode, self._executor = encode_list, encode, executor
        self._tenants: dict[str, OrderedDict[str, asyncio.Task[AnswerVectors]]] = {}

    def prepare(self, tenant: Tenant) -> asyncio.Task[AnswerVectors]:
        """Start (or find) the encoding of a list's answers."""
        tasks = self._tenants.setdefault(tenant.name, OrderedDict())
        task = tasks.get(tenant.list_version)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = tasks[tenant.list_version] = asyncio.get_running_loop().create_task(self._build(tenant))
            while len(tasks) > KEPT_VERSIONS:
                tasks.popitem(last=False)
        return task

    def building(self, tenant: Tenant) -> bool:
        """Whether the answers of this tenant's list are still being encoded."""
        tasks = self._tenants.get(tenant.name)
        task = tasks.get(tenant.list_version) if tasks is not None else None
        return task is not None and not task.done()

    async def similarity(self, tenant: Tenant, targets: Sequence[int], sentence: str) -> float:
        """Largest cosine of `sentence` to an answer of `targets`. Raises TimeoutError or DetectorError."""
        timeout_s = tenant.policy.detector.timeout_s
        async with asyncio.timeout(timeout_s):
            answers = await asyncio.shield(self.prepare(tenant))
            vectors = await self._encode([sentence.strip()], timeout_s)
        return answers.similarity(vectors[0], targets)

    def close(self) -> None:
        """Stop background work."""
        for tasks in self._tenants.values():
            for task in tasks.values():
                task.cancel()

    async def _build(self, tenant: Tenant) -> AnswerVectors:
        texts: list[str] = []
        rows: list[tuple[int, int]] = []
        for target in tenant.targets:
            own = answer_texts(target)
            rows.append((len(texts), len(texts) + len(own)))
            texts += own
        vectors = await asyncio.get_running_loop().run_in_executor(self._executor, self._encode_list, texts)
        return AnswerVectors(vectors, tuple(rows))
