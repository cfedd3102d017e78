"""Which targets of its tenant's forget-list does a prompt touch? The maximum of three parts, per target.

Names (at once, from the moment a list is known), neighbours of the list's texts among sentence vectors, and a head
trained on the examples; the last two join when they are built, off the event loop. The first requests for a new list
wait a little for them. Whatever fails or takes too long gives an unknown verdict, and the tenant's failure mode
decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import structlog

from guard.classifiers.answers import AnswerComparer, compares_answers
from guard.classifiers.batcher import EncoderBatcher
from guard.classifiers.build_queue import BuildQueue, Work
from guard.classifiers.builds import Backoff, Counters, Workshop
from guard.classifiers.encoder import Encoder
from guard.classifiers.forgetlist import Encode, ShippedBenign, TrainedParts, needs_encoder, train_parts
from guard.classifiers.hits import verdict_of, with_doubts
from guard.classifiers.lexical import Doubt, Named
from guard.classifiers.list_states import NO_ENCODER, ListState, ListStates
from guard.classifiers.name_fit import fits, sentence_of, unsettled
from guard.classifiers.slices import encode_in_slices
from guard.classifiers.spans import ordinary_text, turns
from guard.classifiers.versions import KEPT_TENANTS
from guard.classifiers.windows import windows
from guard.errors import ConfigurationError, DetectorError
from guard.policy import Tenant
from guard.verdict import NOTHING, DecodedPrompt, Part, Span, TargetHit, Verdict

Vectors = np.ndarray[Any, np.dtype[np.float32]]
# how long requests wait for the trained parts of a list that is new to this process
FIRST_WAIT_S = 2.0
# of a tenant's timeout, the most that such a wait takes: the rest is left for the verdict itself
_WAIT_SHARE = 0.5
# vectors compared with one prompt from which the event loop is left out
_MANY_PRODUCTS = 20_000

log = structlog.get_logger("guard.detector")


class _NotBuiltError(DetectorError):
    """The trained parts of the list could not be built."""


class Detector:
    """One per process; call from one event loop. `close` when done."""

    def __init__(
        self, encoder: Encoder | None, *, kept_tenants: int = KEPT_TENANTS, backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without an encoder only names are matched; a tenant that asks for more gets an unknown verdict.

        At most `kept_tenants` are kept in memory. A list that could not be built is tried again after the pauses of
        `backoff`; `clock` decides when a request may do so.
        """
        self._encoder = encoder
        self._workshop = Workshop(BuildQueue(), Counters(), backoff or Backoff(), clock)
        self._shipped = ShippedBenign()
        self._batcher = EncoderBatcher(encoder) if encoder is not None else None
        self._lists = ListStates(
            self._workshop, self._train if encoder is not None else None, kept_tenants=kept_tenants
        )
        self._answers: AnswerComparer | None = None
        if self._batcher is not None:
            self._answers = AnswerComparer(
                self._workshop, self._encode_list, self._batcher.encode, kept_tenants=kept_tenants
            )

    @property
    def counters(self) -> Counters:
        """What happened since the start, for metrics."""
        return self._workshop.counters

    def background(self) -> tuple[BuildQueue, Encode] | None:
        """The queue of background work and the encoding of many texts in it, for others; None without an encoder."""
        return (self._workshop.queue, self._encode_list) if self._encoder is not None else None

    def give_way_to(self, busy: Callable[[], bool]) -> None:
        """Build lists that no request waits for where `busy` says that none runs; it is called in another thread."""
        self._workshop.queue.busy = busy

    async def warm(self) -> None:
        """Encode the shipped benign prompts, which all lists are compared with; worth doing before the first request.

        What fails here is tried again by the first build.
        """
        if self._encoder is None:
            return
        try:
            job = self._workshop.queue.submit(self._shipped.get(self._encode_list), urgent=True)
            await asyncio.wrap_future(job.future)
        # nothing depends on it
        except Exception as error:  # noqa: BLE001
            log.warning("detector_not_warmed", error=type(error).__name__)

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
        state = await self._lists.of(tenant)
        if state.build is not None:
            state.build.start()

    def building(self, tenant: Tenant) -> bool:
        """Whether the trained parts of this tenant's list are still being built."""
        state = self._lists.look(tenant)
        trains = state is not None and state.build is not None and state.build.running
        return trains or (self._answers is not None and self._answers.building(tenant))

    @property
    def building_count(self) -> int:
        """Tenants whose current list is still being built."""
        answers = self._answers.all_building() if self._answers is not None else set()
        return len(answers | self._lists.all_building())

    def failure(self, tenant: Tenant) -> str | None:
        """Why the trained parts of this tenant's list are not there, if their build failed. Without content."""
        state = self._lists.look(tenant)
        return state.failure if state is not None else None

    def failures(self) -> dict[int, str]:
        """By tenant index: why the current list cannot be judged, where a build failed. Without content."""
        answers = self._answers.failures() if self._answers is not None else {}
        return answers | self._lists.failures()

    async def built(self, tenant: Tenant) -> None:
        """Wait until the trained parts of this tenant's list are there, or an attempt to build them has failed."""
        await self.prepare(tenant)
        state = self._lists.look(tenant)
        if state is not None and state.build is not None:
            state.build.start(urgent=True)
            await state.build.wait()
        if compares_answers(tenant) and self._answers is not None:
            await self._answers.prepare(tenant, urgent=True).wait()

    async def detect(
        self, tenant: Tenant, prompt: DecodedPrompt, asked: Sequence[Span] | None = None
    ) -> Verdict:
        """The targets that `prompt` touches; unknown when the detector fails, gives NaN or exceeds its time.

        Names are looked for in the whole prompt, meaning in the character ranges `asked` (None: every turn).
        """
        policy = tenant.policy.detector
        if not tenant.listed or policy.mode == "never":
            return NOTHING
        try:
            return await asyncio.wait_for(self._detect(tenant, prompt, asked), policy.timeout_s)
        except TimeoutError:
            self.counters.timeouts += 1
            return Verdict(unknown=True, reason="timeout")
        except _NotBuiltError:
            self.counters.failures += 1
            return Verdict(unknown=True, reason="not_built")
        # a detector that fails in any way has no verdict: letting the error through would be an open door
        except Exception as error:  # noqa: BLE001
            self.counters.failures += 1
            # the text of an error may hold the prompt
            log.warning("verdict_failed", tenant=tenant.index, error=type(error).__name__)
            return Verdict(unknown=True, reason="error")

    def can_compare(self, tenant: Tenant) -> bool:
        """Whether the answers' meaning can be checked as the tenant's policy asks."""
        return self._answers is not None or not compares_answers(tenant)

    async def similarity(self, tenant: Tenant, targets: Sequence[int], sentence: str) -> float:
        """Largest cosine of a generated sentence to an answer of `targets`, within the tenant's detector timeout.

        Raises DetectorError, also after a timeout.
        """
        if self._answers is None:
            raise DetectorError(NO_ENCODER)
        try:
            return await self._answers.similarity(tenant, targets, sentence)
        except TimeoutError as error:
            self.counters.timeouts += 1
            raise DetectorError("a sentence was not compared in time") from error
        # callers know one failure: that there is no answer
        except Exception as error:  # noqa: BLE001
            self.counters.failures += 1
            raise DetectorError(f"a sentence could not be compared: {type(error).__name__}") from error

    def keep_only(self, tenants: Iterable[Tenant]) -> None:
        """Forget all that is known of tenants that are not among `tenants`; of these the last versions are kept."""
        names = {tenant.name for tenant in tenants}
        self._lists.keep_only(names)
        if self._answers is not None:
            self._answers.keep_only(names)

    def close(self) -> None:
        """Stop background work."""
        if self._answers is not None:
            self._answers.close()
        self._lists.close()
        self._workshop.queue.close()
        if self._batcher is not None:
            self._batcher.close()

    async def _detect(self, tenant: Tenant, prompt: DecodedPrompt, asked: Sequence[Span] | None) -> Verdict:
        policy = tenant.policy.detector
        state = await self._lists.of(tenant)
        text = ordinary_text(prompt)
        named = state.lexical.read(text) if policy.lexical or policy.mode == "always" else Named({})
        if policy.mode == "always":
            return Verdict(tuple(
                TargetHit(number, 1.0, "always", named.hits.get(number, ())) for number in range(len(tenant.targets))
            ))
        hits = {number: TargetHit(number, 1.0, "lexical", spans) for number, spans in named.hits.items()}
        doubts = unsettled(named.doubts, text, tenant.policy.name_forms)
        if needs_encoder(tenant):
            # text that names a target is settled; its meaning would only drag in targets with like questions
            settled = [span for spans in named.hits.values() for span in spans]
            pieces = windows(text, turns(prompt) if asked is None else asked, settled)
            scores, fitting = await self._meaning(state, tenant, pieces, doubts, text)
            for number, score, part in scores:
                if number not in hits or score > hits[number].score:
                    hits[number] = TargetHit(number, score, cast(Part, part))
        else:
            fitting = [doubt for doubt in doubts if fits(doubt, None, tenant.policy.name_forms)]
        return verdict_of(with_doubts(hits, fitting), state.lexical, text)

    async def _meaning(
        self, state: ListState, tenant: Tenant, pieces: Sequence[str], doubts: Sequence[Doubt], text: str
    ) -> tuple[list[tuple[int, float, str]], list[Doubt]]:
        """Targets that the windows `pieces` mean, with score and part; and the doubts that their sentences settle."""
        await self._wait_for_parts(state, tenant)
        if state.failure is not None or self._batcher is None:
            raise _NotBuiltError(state.failure or NO_ENCODER)
        forms = tenant.policy.name_forms
        # while a new list is being built its names already hold, and targets of the list before are still recognised
        source = state if state.parts is not None else self._lists.last_built(tenant)
        if source is None or source.parts is None or not (pieces or doubts):
            return [], [doubt for doubt in doubts if fits(doubt, None, forms)]
        sentences = [sentence_of(doubt, text) for doubt in doubts]
        vectors = await self._batcher.encode([*pieces, *sentences], tenant.policy.detector.timeout_s)
        parts, windowed = source.parts, vectors[: len(pieces)]
        loop = asyncio.get_running_loop()
        if parts.size * len(windowed) > _MANY_PRODUCTS:
            scores = await loop.run_in_executor(None, parts.score, windowed)
        else:
            scores = parts.score(windowed)
        if source is not state:
            number_of = {name: number for number, name in enumerate(state.names)}
            return [
                (number_of[source.names[number]], score, part)
                for number, score, part in scores if source.names[number] in number_of
            ], [doubt for doubt in doubts if fits(doubt, None, forms)]
        fitting = []
        for doubt, vector in zip(doubts, vectors[len(pieces) :], strict=True):
            found = parts.similarity(vector[None], doubt.target)
            if fits(doubt, None if found is None else float(found[0]), forms):
                fitting.append(doubt)
        return scores, fitting

    async def _wait_for_parts(self, state: ListState, tenant: Tenant) -> None:
        """Have the list built before all that no request waits for; wait for it unless an older version serves."""
        build = state.build
        if build is None or build.result is not None:
            return
        build.start(urgent=True)
        if build.failure is not None or self._lists.last_built(tenant) is None:
            await build.wait_briefly(_WAIT_SHARE * tenant.policy.detector.timeout_s, FIRST_WAIT_S)

    def _train(self, tenant: Tenant) -> Work[TrainedParts]:
        return train_parts(tenant, self._encode_list, self._shipped)

    def _encode_list(self, texts: Sequence[str]) -> Work[Vectors]:
        if self._encoder is None:
            raise DetectorError(NO_ENCODER)
        return encode_in_slices(self._encoder, texts)
