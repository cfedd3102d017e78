"""Which targets of its tenant's forget-list does a prompt touch? The maximum of three parts, per target.

Names (at once, from the moment a list is known), neighbours of the list's texts among sentence vectors, and a head
trained on the examples; the last two join when they are built, off the event loop. Whatever fails or takes too long
gives UNKNOWN, and the tenant's failure mode decides.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from guard.classifiers.answers import AnswerComparer, compares_answers
from guard.classifiers.batcher import EncoderBatcher
from guard.classifiers.encoder import Encoder
from guard.classifiers.forgetlist import TrainedParts, needs_encoder, train_parts
from guard.classifiers.index import NeighbourIndex
from guard.classifiers.lexical import LexicalMatcher, merge_spans
from guard.classifiers.spans import ordinary_text, turns
from guard.classifiers.windows import windows
from guard.errors import ConfigurationError, DetectorError
from guard.policy import Tenant
from guard.verdict import NOTHING, UNKNOWN, DecodedPrompt, Part, Span, TargetHit, Verdict

Vectors = np.ndarray[Any, np.dtype[np.float32]]
# versions of one tenant's list kept: requests admitted under an old one finish with it
_KEPT_VERSIONS = 3
_SLICE = 32
_LARGE_LIST = 2000


@dataclass(slots=True)
class _State:
    """One list under one detector policy. `parts` is set once, by the builder; `failure` says why it never will be."""

    lexical: LexicalMatcher
    names: tuple[str, ...]
    parts: TrainedParts | None = None
    task: asyncio.Task[None] | None = None
    failure: str | None = None


@dataclass(slots=True)
class _Counters:
    """What happened since the start, for metrics."""

    timeouts: int = 0
    failures: int = 0
    builds: int = 0
    build_failures: int = 0


@dataclass(slots=True)
class _Lists:
    states: OrderedDict[tuple[str, str], _State] = field(default_factory=OrderedDict)


class Detector:
    """One per process; call from one event loop. `close` when done."""

    def __init__(self, encoder: Encoder | None) -> None:
        """Without an encoder only names are matched; a tenant that asks for more gets UNKNOWN."""
        self._encoder = encoder
        self._batcher = EncoderBatcher(encoder) if encoder is not None else None
        self._index: NeighbourIndex | None = None
        self._index_lock = threading.Lock()
        self._tenants: dict[str, _Lists] = {}
        self._builder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guard-build")
        self._answers: AnswerComparer | None = None
        if self._batcher is not None:
            self._answers = AnswerComparer(self._encode_in_slices, self._batcher.encode, self._builder)
        self.counters = _Counters()

    async def prepare(self, tenant: Tenant) -> None:
        """Make a tenant's list usable: names now, the trained parts in the background. Cheap when already known.

        Raises ConfigurationError when answers are to be compared by meaning and there is no encoder.
        """
        if not tenant.listed or tenant.policy.detector.mode == "never":
            return
        if compares_answers(tenant):
            if self._answers is None:
                raise ConfigurationError(
                    f"tenant {tenant.index}: policy.output.semantic needs a sentence encoder; set GUARD_ENCODER"
                )
            self._answers.prepare(tenant)
        await self._state(tenant)

    def building(self, tenant: Tenant) -> bool:
        """Whether the trained parts of this tenant's list are still being built."""
        state = self._known(tenant)
        trains = state is not None and state.task is not None and not state.task.done()
        return trains or (self._answers is not None and self._answers.building(tenant))

    def failure(self, tenant: Tenant) -> str | None:
        """Why the trained parts of this tenant's list could not be built, if they could not."""
        state = self._known(tenant)
        return state.failure if state is not None else None

    async def built(self, tenant: Tenant) -> None:
        """Wait until the trained parts of this tenant's list are there or have failed."""
        await self.prepare(tenant)
        state = self._known(tenant)
        if state is not None and state.task is not None:
            await asyncio.shield(state.task)
        if compares_answers(tenant) and self._answers is not None:
            await asyncio.wait([self._answers.prepare(tenant)])

    async def detect(self, tenant: Tenant, prompt: DecodedPrompt) -> Verdict:
        """The targets that `prompt` touches; UNKNOWN when the detector fails, gives NaN or exceeds its time."""
        policy = tenant.policy.detector
        if not tenant.listed or policy.mode == "never":
            return NOTHING
        try:
            return await asyncio.wait_for(self._detect(tenant, prompt), policy.timeout_s)
        except TimeoutError:
            self.counters.timeouts += 1
            return UNKNOWN
        # a detector that fails in any way has no verdict: letting the error through would be an open door
        except Exception:  # noqa: BLE001
            self.counters.failures += 1
            return UNKNOWN

    def can_compare(self, tenant: Tenant) -> bool:
        """Whether the answers' meaning can be checked as the tenant's policy asks."""
        return self._answers is not None or not compares_answers(tenant)

    async def similarity(self, tenant: Tenant, targets: Sequence[int], sentence: str) -> float:
        """Largest cosine of a generated sentence to an answer of `targets`, within the tenant's detector timeout.

        Raises DetectorError, also after a timeout.
        """
        if self._answers is None:
            raise DetectorError("the detector has no sentence encoder")
        try:
            return await self._answers.similarity(tenant, targets, sentence)
        except TimeoutError as error:
            self.counters.timeouts += 1
            raise DetectorError("a sentence was not compared in time") from error
        # callers know one failure: that there is no answer
        except Exception as error:  # noqa: BLE001
            self.counters.failures += 1
            raise DetectorError(f"a sentence could not be compared: {type(error).__name__}") from error

    def close(self) -> None:
        """Stop background work."""
        if self._answers is not None:
            self._answers.close()
        for lists in self._tenants.values():
            for state in lists.states.values():
                if state.task is not None:
                    state.task.cancel()
        if self._batcher is not None:
            self._batcher.close()
        self._builder.shutdown(wait=False, cancel_futures=True)

    async def _detect(self, tenant: Tenant, prompt: DecodedPrompt) -> Verdict:
        policy = tenant.policy.detector
        state = await self._state(tenant)
        text = ordinary_text(prompt)
        named = state.lexical.match(text) if policy.lexical or policy.mode == "always" else {}
        if policy.mode == "always":
            return Verdict(tuple(
                TargetHit(number, 1.0, "always", named.get(number, ())) for number in range(len(tenant.targets))
            ))
        hits = {number: TargetHit(number, 1.0, "lexical", spans) for number, spans in named.items()}
        if needs_encoder(tenant):
            # text that names a target is settled; its meaning would only drag in targets with like questions
            settled = [span for spans in named.values() for span in spans]
            pieces = windows(text, turns(prompt), settled)
            for number, score, part in await self._meaning(state, tenant, pieces):
                if number not in hits or score > hits[number].score:
                    hits[number] = TargetHit(number, score, cast(Part, part))
        return _with_name_parts(hits, state.lexical, text)

    async def _meaning(
        self, state: _State, tenant: Tenant, pieces: Sequence[str]
    ) -> list[tuple[int, float, str]]:
        if state.failure is not None or self._batcher is None or self._encoder is None:
            raise DetectorError(state.failure or "the detector has no sentence encoder")
        # while a new list is being built its names already hold, and targets of the list before are still recognised
        source = state if state.parts is not None else self._last_built(tenant)
        if source is None or source.parts is None or self._index is None or not pieces:
            return []
        vectors = await self._batcher.encode(pieces, tenant.policy.detector.timeout_s)
        scores = source.parts.score(vectors, self._index)
        if source is state:
            return scores
        number_of = {name: number for number, name in enumerate(state.names)}
        return [
            (number_of[source.names[number]], score, part)
            for number, score, part in scores if source.names[number] in number_of
        ]

    def _last_built(self, tenant: Tenant) -> _State | None:
        """The newest list of this tenant that has its trained parts."""
        states = reversed(self._tenants[tenant.name].states.values())
        return next((state for state in states if state.parts is not None), None)

    def _known(self, tenant: Tenant) -> _State | None:
        lists = self._tenants.get(tenant.name)
        return lists.states.get(_key(tenant)) if lists is not None else None

    async def _state(self, tenant: Tenant) -> _State:
        state = self._known(tenant)
        if state is not None:
            return state
        if len(tenant.targets) > _LARGE_LIST:
            loop = asyncio.get_running_loop()
            lexical = await loop.run_in_executor(None, LexicalMatcher, tenant.targets)
        else:
            lexical = LexicalMatcher(tenant.targets)
        # another request may have built it meanwhile
        state = self._known(tenant)
        if state is None:
            state = _State(lexical, tuple(target.name for target in tenant.targets))
            self._keep(tenant, state)
            if needs_encoder(tenant):
                state.task = asyncio.get_running_loop().create_task(self._build(tenant, state))
        return state

    def _keep(self, tenant: Tenant, state: _State) -> None:
        states = self._tenants.setdefault(tenant.name, _Lists()).states
        states[_key(tenant)] = state
        while len(states) > _KEPT_VERSIONS:
            _, old = states.popitem(last=False)
            if old.task is not None:
                old.task.cancel()
            if old.parts is not None and old.parts.block is not None and self._index is not None:
                self._index.remove(old.parts.block)

    async def _build(self, tenant: Tenant, state: _State) -> None:
        self.counters.builds += 1
        try:
            loop = asyncio.get_running_loop()
            state.parts = await loop.run_in_executor(self._builder, self._train, tenant)
        # the list stays guarded: without its trained parts every verdict of this tenant is unknown
        except Exception as error:  # noqa: BLE001
            self.counters.build_failures += 1
            state.failure = f"{type(error).__name__}: {error}"

    def _train(self, tenant: Tenant) -> TrainedParts:
        if self._encoder is None:
            raise DetectorError("the detector has no sentence encoder")
        with self._index_lock:
            if self._index is None:
                self._index = NeighbourIndex(self._encoder.dimensions)
        return train_parts(tenant, self._encode_in_slices, self._index)

    def _encode_in_slices(self, texts: Sequence[str]) -> Vectors:
        """Encode list texts a few at a time, so that requests get the encoder in between.

        Texts of like length go together: a batch costs what its longest text costs.
        """
        if self._encoder is None:
            raise DetectorError("the detector has no sentence encoder")
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        vectors = np.zeros((len(texts), self._encoder.dimensions), np.float32)
        for start in range(0, len(order), _SLICE):
            slice_of = order[start : start + _SLICE]
            vectors[slice_of] = self._encoder.encode([texts[number] for number in slice_of], store=True)
        return vectors


def _key(tenant: Tenant) -> tuple[str, str]:
    return tenant.list_version, tenant.policy.detector.model_dump_json(exclude={"timeout_s"})


def _with_name_parts(hits: dict[int, TargetHit], lexical: LexicalMatcher, text: str) -> Verdict:
    """Best hits first; their spans joined with single words of their names, which betray the target as well."""
    if not hits:
        return NOTHING
    parts = lexical.parts(text, hits)
    complete = []
    for number, hit in hits.items():
        spans: list[Span] = [*hit.spans, *parts.get(number, ())]
        complete.append(TargetHit(number, hit.score, hit.part, merge_spans(spans)))
    return Verdict(tuple(sorted(complete, key=lambda hit: (-hit.score, hit.target))))
