"""The checked choices of one generation, put together to one answer of the kind that the caller asked for."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from guard.engine.admission import Leave, OutputCheck
from guard.engine.choice import CheckedChoice
from guard.engine.generation import Generation


async def checked_answer(
    engine: Any, leave: Leave, check: OutputCheck, generation: Generation
) -> AsyncGenerator[RequestOutput, None]:
    """Run all choices of an admitted generation side by side; closing the answer closes them all."""
    choices = [CheckedChoice(engine, leave, check, generation, index) for index in range(generation.params.n)]
    stream = choices[0].run() if len(choices) == 1 else _interleave([choice.run() for choice in choices])
    async with aclosing(stream), aclosing(_assemble(stream, generation)) as assembled:
        async for output in assembled:
            yield output


async def _assemble(
    stream: AsyncIterator[tuple[RequestOutput, CompletionOutput]], generation: Generation
) -> AsyncGenerator[RequestOutput, None]:
    """Turn the deltas of all choices into request outputs of the kind that the caller asked for."""
    params, prompt_ids = generation.params, list(generation.token_ids)
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
        result.request_id = generation.request_id
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
