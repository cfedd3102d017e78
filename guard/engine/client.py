"""The only door to the engine: a proxy around vLLM's `EngineClient`.

Every route of the server ends in `generate`. The proxy asks the gate what to do with the rendered prompt, signs nothing
itself, replaces `extra_args` and the cache salt by the gate's, and runs the output check. It forwards every other
attribute, and refuses `encode`: pooled outputs cannot be checked.

Invariants: no generation starts without an admission; client-given `extra_args`, priorities and salts never reach the
engine; what was held for a generation is given back when it has ended in the engine, however it ended; a tenant without
a forget-list gets the inner generator itself, with no work per token.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from guard.engine.admission import CURRENT_REQUEST, Gate, Leave
from guard.engine.answer import checked_answer
from guard.engine.generation import Generation
from guard.errors import RequestRefused


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
            generation = Generation.of(context, prompt, sampling_params, request_id, options)
            admission = self._gate.admit_now(generation.context, generation.token_ids)
        except RequestRefused as error:
            if context is not None:
                context.refuse(error)
            return _raising(error)
        if admission is None:
            return self._guarded(generation)
        generation.context.admit()
        return generation.start(self._inner, admission)

    def encode(self, *_: Any, **__: Any) -> AsyncGenerator[Any, None]:
        """Refused: pooled outputs cannot be checked."""
        return _raising(RequestRefused("this server only generates text", status=404, code="not_found"))

    async def _guarded(self, generation: Generation) -> AsyncGenerator[RequestOutput, None]:
        context = generation.context
        async with AsyncExitStack() as held:
            try:
                leave = await held.enter_async_context(self._gate.admitted(context, generation.token_ids))
            except RequestRefused as error:
                context.refuse(error)
                raise
            context.admit()
            # closed at once when the client goes away, so that the engine's request is aborted now
            answer = await held.enter_async_context(aclosing(self._answer(generation, leave)))
            async for output in answer:
                yield output

    def _answer(self, generation: Generation, leave: Leave) -> AsyncGenerator[RequestOutput, None]:
        check = leave.admission.check
        if check is None:
            return _without_stop_reasons(generation.start(self._inner, leave.admission))
        return checked_answer(self._inner, leave, check, generation)


async def _without_stop_reasons(stream: AsyncGenerator[RequestOutput, None]) -> AsyncGenerator[RequestOutput, None]:
    async with aclosing(stream):
        async for output in stream:
            # which stop string matched would tell what the model was about to say
            for completion in output.outputs:
                completion.stop_reason = None
            yield output


async def _raising(error: RequestRefused) -> AsyncGenerator[Any, None]:
    raise error
    yield
