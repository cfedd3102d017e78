"""One choice of a checked answer: hold back, compare, and roll back where a forbidden string appears.

Text is released in whole tokens, and only when no forbidden string can begin in it. On a hit the engine's request is
aborted and a new one continues from the last released token with the constraint on. Where that is impossible
(structured output, stop strings, roll-backs used up) the answer ends with `finish_reason: "content_filter"`.

Where sentences are compared by meaning as well, text also waits until its sentence is finished and was compared.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine.admission import Admission, Gate, OutputCheck, RequestContext
from guard.errors import ConfigurationError, DetectorError, RequestRefused
from guard.sentences import SentenceSplitter
from guard.stream import OutputMatcher

CONTENT_FILTER = "content_filter"
_SEED_STEP = 1_000_003

Start = Callable[[Sequence[int], Admission, SamplingParams, str], AsyncGenerator[RequestOutput, None]]
Delta = tuple[RequestOutput, CompletionOutput]


class HoldBack:
    """Tokens whose text is not yet known to be clean. Deltas go in as they come and out in whole tokens."""

    def __init__(self, check: OutputCheck, seed: str) -> None:
        self._matcher = OutputMatcher(check.patterns, check.exempt, seed)
        self._waiting: deque[CompletionOutput] = deque()
        self._clean_characters = 0
        self._splitter = SentenceSplitter() if check.targets else None
        # a sentence that began in the seed is compared as a whole, but only its new part waits here
        self._compared_characters = 0
        if self._splitter is not None:
            self._splitter.feed(seed)
            self._compared_characters = -len(self._splitter.pending)
        self._sentences: deque[str] = deque()

    @property
    def waiting_tokens(self) -> int:
        """Number of tokens held back now."""
        return sum(len(delta.token_ids) for delta in self._waiting)

    def push(self, delta: CompletionOutput) -> bool:
        """Take a delta; True when its text completes a forbidden string."""
        released = self._matcher.feed(delta.text)
        self._clean_characters += len(released.text)
        self._waiting.append(delta)
        if self._splitter is not None:
            self._sentences.extend(self._splitter.feed(delta.text))
            if delta.finish_reason is not None:
                self._sentences.extend(self._splitter.flush())
        if released.hit or delta.finish_reason is None:
            return released.hit
        if isinstance(delta.stop_reason, str) and self._matcher.feed(delta.stop_reason).hit:
            # the stop string is cut off, but an answer that ends just there would confirm a guess
            before_end = sum(len(waiting.text) for waiting in self._waiting) - 1
            self._clean_characters = min(self._clean_characters, before_end)
            return True
        rest = self._matcher.flush()
        self._clean_characters += len(rest.text)
        return rest.hit

    def next_sentence(self) -> str | None:
        """The first finished sentence that was not compared yet."""
        return self._sentences[0] if self._sentences else None

    def passed(self) -> None:
        """The sentence that `next_sentence` gave is clean."""
        self._compared_characters += len(self._sentences.popleft())

    def pop_clean(self) -> list[CompletionOutput]:
        """Deltas whose whole text is clean. A token without text waits for the text it is a part of."""
        count, end = 0, 0
        limit = self._clean_characters
        if self._splitter is not None:
            limit = min(limit, self._compared_characters)
        for position, delta in enumerate(self._waiting, start=1):
            end += len(delta.text)
            if end > limit:
                break
            if delta.text or delta.finish_reason is not None:
                count = position
        clean = [self._waiting.popleft() for _ in range(count)]
        characters = sum(len(delta.text) for delta in clean)
        self._clean_characters -= characters
        self._compared_characters -= characters
        return clean


class CheckedChoice:
    """Runs choice `index` of a request; `start` begins one generation in the engine."""

    def __init__(
        self, start: Start, gate: Gate, context: RequestContext, admission: Admission, prompt_ids: tuple[int, ...],
        params: SamplingParams, request_id: str, index: int,
    ) -> None:
        if admission.check is None:
            raise ConfigurationError("a checked choice needs an output check")
        self._start, self._gate, self._context = start, gate, context
        self._admission, self._check = admission, admission.check
        self._prompt_ids, self._params, self._request_id, self._index = prompt_ids, params, request_id, index
        self._accepted: list[int] = []
        self._text = ""
        self._last: RequestOutput | None = None

    async def run(self) -> AsyncGenerator[Delta, None]:
        """Deltas of the answer; the last one has a finish reason."""
        for attempt in range(self._check.max_rollbacks + 1):
            finished = False
            try:
                async with aclosing(self._attempt(attempt)) as deltas:
                    async for output, delta in deltas:
                        finished = finished or delta.finish_reason is not None
                        yield output, delta
            except DetectorError:
                # what cannot be compared is not released, and another draw could not be compared either
                break
            if finished:
                return
            self._gate.count_output(self._context, rollbacks=1)
            if attempt == self._check.max_rollbacks or not await self._can_resume():
                break
        self._gate.count_output(self._context, filtered=1)
        yield self._end(CONTENT_FILTER)

    async def _attempt(self, attempt: int) -> AsyncGenerator[Delta, None]:
        """One generation, up to its end or the first forbidden string."""
        params = self._attempt_params(attempt)
        if params.max_tokens is not None and params.max_tokens < 1:
            yield self._end("length")
            return
        first = attempt == 0 and self._params.n == 1
        name = self._request_id if first else f"{self._request_id}-{self._index}-{attempt}"
        hold_back = HoldBack(self._check, self._check.seed + self._text)
        stream = self._start((*self._prompt_ids, *self._accepted), self._admission, params, name)
        try:
            async for output in stream:
                self._last = output
                if not output.outputs:
                    continue
                hit = hold_back.push(output.outputs[0]) or await self._similar(hold_back)
                clean = hold_back.pop_clean()
                if clean:
                    yield output, self._release(clean)
                if hold_back.waiting_tokens:
                    self._gate.count_output(self._context, held_back=len(output.outputs[0].token_ids))
                if hit:
                    return
        finally:
            await stream.aclose()

    async def _similar(self, hold_back: HoldBack) -> bool:
        """Compare finished sentences up to the first that means an answer. Raises DetectorError."""
        while (sentence := hold_back.next_sentence()) is not None:
            if await self._gate.similar(self._context, self._admission, sentence):
                return True
            hold_back.passed()
        return False

    def _attempt_params(self, attempt: int) -> SamplingParams:
        own = copy.copy(self._params)
        own.n = 1
        own.output_kind = RequestOutputKind.DELTA
        if own.max_tokens is not None:
            own.max_tokens -= len(self._accepted)
        own.min_tokens = max(0, own.min_tokens - len(self._accepted))
        if own.seed is not None:
            # the same derivation as vLLM's own children, another draw after a roll-back
            own.seed += self._index + attempt * _SEED_STEP
        return own

    async def _can_resume(self) -> bool:
        # a grammar restarts at a new prompt; a stop string makes text lag behind its tokens
        if self._params.structured_outputs is not None or (self._params.stop and self._accepted):
            return False
        try:
            self._admission = await self._gate.resume(
                self._context, self._admission, (*self._prompt_ids, *self._accepted)
            )
        except RequestRefused:
            return False
        return True

    def _release(self, clean: list[CompletionOutput]) -> CompletionOutput:
        """Join clean deltas into one and remember them as the point to resume from."""
        merged = copy.copy(clean[-1])
        merged.index = self._index
        merged.stop_reason = None
        merged.text = "".join(delta.text for delta in clean)
        merged.token_ids = [token for delta in clean for token in delta.token_ids]
        if any(delta.logprobs is not None for delta in clean):
            entries: list[Any] = [entry for delta in clean for entry in delta.logprobs or ()]
            merged.logprobs = entries
        self._accepted.extend(merged.token_ids)
        self._text += merged.text
        return merged

    def _end(self, reason: str) -> Delta:
        template = self._last or RequestOutput(
            request_id=self._request_id, prompt=None, prompt_token_ids=list(self._prompt_ids), prompt_logprobs=None,
            outputs=[], finished=True,
        )
        logprobs: list[Any] | None = [] if self._params.logprobs is not None else None
        return template, CompletionOutput(
            index=self._index, text="", token_ids=[], cumulative_logprob=None, logprobs=logprobs, finish_reason=reason
        )
