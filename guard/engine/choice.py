"""One choice of a checked answer: hold back, compare, and roll back where a forbidden string appears.

On a hit the engine's request is aborted and a new one continues from the last released token with the constraint on. An
answer that names a target although its prompt did not is begun anew as the answer to a flagged prompt; where text of it
was sent already, its sentence is ended as one of not knowing.
Where that is impossible (structured output, stop strings, roll-backs used up) the answer ends with
`finish_reason: "content_filter"`.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine.admission import Leave, OutputCheck
from guard.engine.answer_ending import AnswerEnding
from guard.engine.generation import Generation
from guard.engine.hold_back import HoldBack
from guard.errors import DetectorError, RequestRefused
from guard.sentences import SentenceSplitter

CONTENT_FILTER = "content_filter"
_SEED_STEP = 1_000_003

Delta = tuple[RequestOutput, CompletionOutput]


class CheckedChoice:
    """Runs choice `index` of an admitted generation in `engine`, an `EngineClient`."""

    def __init__(self, engine: Any, leave: Leave, check: OutputCheck, generation: Generation, index: int) -> None:
        self._engine, self._leave, self._generation, self._index = engine, leave, generation, index
        # its own from the start: another choice may be continued with another admission before this one begins
        self._admission = leave.admission
        self._max_rollbacks = check.max_rollbacks
        # what is not sent piece by piece can be taken back whole
        self._streamed = generation.params.output_kind != RequestOutputKind.FINAL_ONLY
        self._accepted: list[int] = []
        self._said = ""
        self._last: RequestOutput | None = None
        self._check_with(check)

    async def run(self) -> AsyncGenerator[Delta, None]:
        """Deltas of the answer; the last one has a finish reason."""
        attempt = rollbacks = 0
        kept: list[Delta] = []
        while True:
            finished = False
            try:
                async with aclosing(self._attempt(attempt)) as deltas:
                    async for output, delta in deltas:
                        finished = finished or delta.finish_reason is not None
                        if self._streamed:
                            yield output, delta
                        else:
                            kept.append((output, delta))
            except DetectorError:
                # what cannot be compared is not released, and another draw could not be compared either
                break
            if finished:
                break
            attempt += 1
            if self._hold_back.named and await self._flag():
                kept = kept if self._accepted else []
                continue
            if rollbacks == self._max_rollbacks or not await self._can_resume():
                break
            rollbacks += 1
            self._roll_back()
            self._leave.count_output(rollbacks=1)
        for item in kept:
            yield item
        if not finished:
            self._leave.count_output(filtered=1)
            yield self._end(CONTENT_FILTER)

    def _check_with(self, check: OutputCheck) -> None:
        self._hold_back = HoldBack(check)
        self._ending = AnswerEnding(check.end) if check.end is not None else None

    def _roll_back(self) -> None:
        self._hold_back.roll_back()
        if self._ending is not None:
            self._ending.begin_after(self._said)

    async def _attempt(self, attempt: int) -> AsyncGenerator[Delta, None]:
        """One generation, up to its end or the first forbidden string."""
        part = self._part(attempt)
        if part.params.max_tokens is not None and part.params.max_tokens < 1:
            yield self._end("length")
            return
        async with aclosing(part.start(self._engine, self._admission)) as stream:
            async for output in stream:
                self._last = output
                if not output.outputs:
                    continue
                delta = output.outputs[0] if self._ending is None else self._ending.cut(output.outputs[0])
                hit = self._hold_back.push(delta) or await self._similar()
                clean = self._hold_back.pop_clean()
                if clean:
                    yield output, self._release(clean)
                if self._hold_back.waits:
                    self._leave.count_output(held_back=len(delta.token_ids))
                if hit or (delta.finish_reason is not None and not output.finished):
                    return

    async def _flag(self) -> bool:
        """The answer named a target that the prompt did not: go on as a flagged one, if that can be done."""
        params = self._generation.params
        taken_back = not self._streamed or not self._accepted
        # past its first sentence an answer is about something else: there the name alone is kept out
        if params.structured_outputs is not None or SentenceSplitter().feed(self._said):
            return False
        if not taken_back and params.stop:
            return False
        if taken_back:
            self._accepted.clear()
            self._said = ""
        try:
            self._admission = await self._leave.flag(self._tokens_so_far(), self._said)
        except RequestRefused:
            return False
        if self._admission.check is None:
            return False
        self._check_with(self._admission.check)
        return True

    async def _similar(self) -> bool:
        """Compare finished sentences up to the first that means an answer. Raises DetectorError."""
        while (sentence := self._hold_back.next_sentence()) is not None:
            if await self._leave.similar(sentence):
                return True
            self._hold_back.passed()
        return False

    def _part(self, attempt: int) -> Generation:
        """What the engine is asked for in this attempt."""
        whole = self._generation
        first = attempt == 0 and whole.params.n == 1
        name = whole.request_id if first else f"{whole.request_id}-{self._index}-{attempt}"
        return whole.part(self._tokens_so_far(), self._attempt_params(attempt), name)

    def _attempt_params(self, attempt: int) -> SamplingParams:
        own = copy.copy(self._generation.params)
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
        params = self._generation.params
        # a grammar restarts at a new prompt; a stop string makes text lag behind its tokens
        if params.structured_outputs is not None or (params.stop and self._accepted):
            return False
        try:
            self._admission = await self._leave.resume(self._tokens_so_far())
        except RequestRefused:
            return False
        return True

    def _tokens_so_far(self) -> tuple[int, ...]:
        return (*self._generation.token_ids, *self._accepted)

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
        self._said += merged.text
        return merged

    def _end(self, reason: str) -> Delta:
        whole = self._generation
        template = self._last or RequestOutput(
            request_id=whole.request_id, prompt=None, prompt_token_ids=list(whole.token_ids), prompt_logprobs=None,
            outputs=[], finished=True,
        )
        logprobs: list[Any] | None = [] if whole.params.logprobs is not None else None
        return template, CompletionOutput(
            index=self._index, text="", token_ids=[], cumulative_logprob=None, logprobs=logprobs, finish_reason=reason
        )
