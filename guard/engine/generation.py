"""One generation, from what a route asked of the engine to what the engine is given.

Only what stands in a `Generation` reaches the engine, and only together with an admission: `extra_args` and the cache
salt are the admission's, never the client's.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from guard.engine.admission import Admission, RequestContext
from guard.errors import RequestRefused
from guard.ticket import EXTRA_ARG

_NOT_TEXT = ("mm_", "multi_modal", "prompt_embeds", "encoder")
_FORWARDED = ("prompt_text", "trace_headers", "tokenization_kwargs", "reasoning_ended", "reasoning_parser_kwargs")


@dataclass(frozen=True, slots=True)
class Generation:
    """A rendered text prompt (`token_ids` are its tokens), how to sample, the engine's name for it, and for whom.

    `forwarded` are the options of `EngineClient.generate` that the engine may see.
    """

    context: RequestContext
    prompt: Mapping[str, Any]
    token_ids: tuple[int, ...]
    params: SamplingParams
    request_id: str
    forwarded: Mapping[str, Any]

    @classmethod
    def of(
        cls, context: RequestContext | None, prompt: Any, params: SamplingParams, request_id: str,
        options: Mapping[str, Any],
    ) -> Generation:
        """What a call of `EngineClient.generate` asks for. Raises RequestRefused for what is not served."""
        token_ids = _token_ids(context, prompt, options)
        if context is None:
            raise RequestRefused("request did not come through the guard", status=403, code="forbidden")
        forwarded = {name: options[name] for name in _FORWARDED if options.get(name) is not None}
        return cls(context, prompt, token_ids, params, request_id, forwarded)

    def part(self, token_ids: tuple[int, ...], params: SamplingParams, request_id: str) -> Generation:
        """One choice of this generation, or the rest of it after a roll-back."""
        return replace(self, token_ids=token_ids, params=params, request_id=request_id)

    def start(self, engine: Any, admission: Admission) -> AsyncGenerator[RequestOutput, None]:
        """Begin it in `engine`, an `EngineClient`."""
        own = self._admitted_params(admission)
        if admission.allowed:
            own.allowed_token_ids = list(admission.allowed)
        # vLLM refuses a bias where tokens are drafted
        if admission.bias and engine.vllm_config.speculative_config is None:
            own.logit_bias = {**(own.logit_bias or {}), **admission.bias}
        stream: AsyncGenerator[RequestOutput, None] = engine.generate(
            self._admitted_prompt(admission), own, self.request_id, **self.forwarded
        )
        return stream

    def _admitted_prompt(self, admission: Admission) -> dict[str, Any]:
        return {**self.prompt, "prompt_token_ids": list(self.token_ids), "cache_salt": admission.salt}

    def _admitted_params(self, admission: Admission) -> SamplingParams:
        own = copy.copy(self.params)
        own.extra_args = {EXTRA_ARG: admission.ticket}
        return own


def _token_ids(context: RequestContext | None, prompt: Any, options: Mapping[str, Any]) -> tuple[int, ...]:
    """Token ids of a rendered text prompt. Raises RequestRefused for anything else the engine would accept."""
    if not isinstance(prompt, dict) or not prompt.get("prompt_token_ids"):
        raise RequestRefused("only text prompts are served", code="unsupported_prompt")
    if any(value and key.startswith(_NOT_TEXT) for key, value in prompt.items()):
        raise RequestRefused("only text prompts are served", code="unsupported_prompt")
    if options.get("lora_request") is not None and (context is None or context.tenant.guarded):
        raise RequestRefused("the model does not exist", status=404, code="model_not_found", param="model")
    return tuple(prompt["prompt_token_ids"])
