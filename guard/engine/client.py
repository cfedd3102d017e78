"""The only door to the engine: a proxy around vLLM's `EngineClient`.

Every route of the server ends in `generate`. The proxy asks the gate what to do with the rendered prompt, signs nothing
itself, replaces `extra_args` and the cache salt by the gate's, and runs the output check. It forwards every other
attribute, and refuses `encode`: pooled outputs cannot be checked.

Invariants: no generation starts without an admission; client-given `extra_args`, priorities and salts never reach the
engine; a tenant without a forget-list gets the inner generator itself, with no work per token.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine.admission import CURRENT_REQUEST, Admission, Gate, RequestContext
from guard.engine.choice import CheckedChoice
from guard.errors import RequestRefused
from guard.ticket import EXTRA_ARG

_NOT_TEXT = ("mm_", "multi_modal", "prompt_embeds", "encoder")
_FORWARDED = ("prompt_text", "trace_headers", "tokenization_kwargs", "reasoning_ended", "reasoning_parser_kwargs")


def admitted_params(params: SamplingParams, admission: Admission) -> SamplingParams:
    """A copy of `params` that carries the ticket and nothing else in `extra_args`."""
    own = copy.copy(params)
    own.extra_args = {EXTRA_ARG: admission.ticket}
    return own


def admitted_prompt(prompt: dict[str, Any], token_ids: Sequence[int], admission: Admission) -> dict[str, Any]:
    """The rendered prompt with `token_ids` and the admission's cache salt."""
    return {**prompt, "prompt_token_ids": list(token_ids), "cache_salt": admission.salt}


class GuardedEngineClient:
    """Proxy around an `EngineClient`; see the module's invariants."""

    def __init__(self, inner: Any, gate: Gate, on_shutdown: Callable[[], None] | None = None) -> None:
        self._inner = inner
        self._gate = gate
        self._on_shutdown = on_shutdown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def inner(self) -> Any:
        """The wrapped client, for the server's own control calls."""
        return self._inner

    def shutdown(self, *arguments: Any, **options: Any) -> Any:
        """Say that the server is draining, then shut the engine down."""
        if self._on_shutdown is not None:
            self._on_shutdown()
        return self._inner.shutdown(*arguments, **options)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """Generate for the request of the current context; same results as `EngineClient.generate`."""
        context = CURRENT_REQUEST.get()
        try:
            token_ids = _token_ids(context, prompt, options)
            if context is None:
                raise RequestRefused("request did not come through the guard", status=403, code="forbidden")
            kept = {name: options[name] for name in _FORWARDED if options.get(name) is not None}
            admission = self._gate.admit_now(context, token_ids)
        except RequestRefused as error:
            if context is not None:
                context.refuse(error)
            return _raising(error)
        if admission is None:
            return self._guarded(context, prompt, token_ids, sampling_params, request_id, kept)
        context.admit()
        return self._run(prompt, token_ids, admission, sampling_params, request_id, kept)

    def encode(self, *_: Any, **__: Any) -> AsyncGenerator[Any, None]:
        """Refused: pooled outputs cannot be checked."""
        return _raising(RequestRefused("this server only generates text", status=404, code="not_found"))

    def _run(
        self, prompt: Any, token_ids: Sequence[int], admission: Admission, params: SamplingParams, request_id: str,
        kept: dict[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        stream: AsyncGenerator[RequestOutput, None] = self._inner.generate(
            admitted_prompt(prompt, token_ids, admission), admitted_params(params, admission), request_id, **kept
        )
        return stream

    async def _guarded(
        self, context: RequestContext, prompt: Any, token_ids: Sequence[int], params: SamplingParams, request_id: str,
        kept: dict[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        try:
            admission = await self._gate.admit(context, token_ids)
        except RequestRefused as error:
            context.refuse(error)
            raise
        context.admit()
        try:
            checked = self._checked(context, admission, prompt, token_ids, params, request_id, kept)
            # closed at once when the client goes away, so that the engine's request is aborted now
            async with aclosing(checked):
                async for output in checked:
                    yield output
        finally:
            self._gate.finish(context, admission)

    async def _checked(
        self, context: RequestContext, admission: Admission, prompt: Any, token_ids: Sequence[int],
        params: SamplingParams, request_id: str, kept: dict[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        if admission.check is None:
            async with aclosing(self._run(prompt, token_ids, admission, params, request_id, kept)) as plain:
                async for output in plain:
                    yield _without_stop_reason(output)
            return

        def start(ids: Sequence[int], leave: Admission, own: SamplingParams, name: str) -> AsyncGenerator[Any, None]:
            return self._run(prompt, ids, leave, own, name, kept)

        choices = [
            CheckedChoice(start, self._gate, context, admission, tuple(token_ids), params, request_id, index)
            for index in range(params.n)
        ]
        stream = choices[0].run() if len(choices) == 1 else _interleave([choice.run() for choice in choices])
        async with aclosing(stream), aclosing(_assemble(stream, params, request_id, list(token_ids))) as assembled:
            async for output in assembled:
                yield output


async def _assemble(
    stream: AsyncIterator[tuple[RequestOutput, CompletionOutput]], params: SamplingParams, request_id: str,
    prompt_ids: list[int],
) -> AsyncGenerator[RequestOutput, None]:
    """Turn the deltas of all choices into request outputs of the kind that the caller asked for."""
    totals: dict[int, CompletionOutput] = {}
    open_choices = set(range(params.n))
    async for template, delta in stream:
        total = totals[delta.index] = _joined(totals.get(delta.index), delta)
        if delta.finish_reason is not None:
            open_choices.discard(delta.index)
        if params.output_kind == RequestOutputKind.FINAL_ONLY:
            if open_choices:
                continue
            outputs = [totals[index] for index in sorted(totals)]
        else:
            outputs = [delta if params.output_kind == RequestOutputKind.DELTA else copy.copy(total)]
        result = copy.copy(template)
        result.request_id = request_id
        result.prompt_token_ids = prompt_ids
        result.outputs = outputs
        result.finished = not open_choices
        yield result


def _joined(total: CompletionOutput | None, delta: CompletionOutput) -> CompletionOutput:
    """The text, tokens and logprobs so far, followed by those of `delta`."""
    joined = copy.copy(delta)
    joined.token_ids = list(delta.token_ids)
    if total is not None:
        joined.text = total.text + delta.text
        joined.token_ids = [*total.token_ids, *delta.token_ids]
        if total.logprobs is not None or delta.logprobs is not None:
            joined.logprobs = [*(total.logprobs or ()), *(delta.logprobs or ())]
        if delta.cumulative_logprob is None:
            joined.cumulative_logprob = total.cumulative_logprob
    return joined


async def _interleave(streams: list[AsyncGenerator[Any, None]]) -> AsyncGenerator[Any, None]:
    """Items of all streams as they come. Closing it closes all streams; the first error ends it."""
    queue: asyncio.Queue[tuple[Any, BaseException | None, bool]] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[Any, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    queue.put_nowait((item, None, False))
            queue.put_nowait((None, None, True))
        except Exception as error:  # re-raised by the consumer below
            queue.put_nowait((None, error, True))

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        running = len(tasks)
        while running:
            item, error, ended = await queue.get()
            if error is not None:
                raise error
            if ended:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _token_ids(context: RequestContext | None, prompt: Any, options: dict[str, Any]) -> list[int]:
    """Token ids of a rendered text prompt. Raises RequestRefused for anything else the engine would accept."""
    if not isinstance(prompt, dict) or not prompt.get("prompt_token_ids"):
        raise RequestRefused("only text prompts are served", code="unsupported_prompt")
    if any(value and key.startswith(_NOT_TEXT) for key, value in prompt.items()):
        raise RequestRefused("only text prompts are served", code="unsupported_prompt")
    if options.get("lora_request") is not None and (context is None or context.tenant.guarded):
        raise RequestRefused("the model does not exist", status=404, code="model_not_found", param="model")
    return list(prompt["prompt_token_ids"])


def _without_stop_reason(output: RequestOutput) -> RequestOutput:
    # which stop string matched would tell what the model was about to say
    for completion in output.outputs:
        completion.stop_reason = None
    return output


async def _raising(error: RequestRefused) -> AsyncGenerator[Any, None]:
    raise error
    yield
