"""A started engine as the scenarios see it: one request, one batch, counters; and how such an engine is configured."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cases import BATCH, BLOCK_TOKENS, CACHE_BLOCKS, CHUNK_TOKENS, EDIT_SLOTS, TOP, plan

from guard.plan import Plan
from guard.ticket import cache_salt, read_key, sign


@dataclass
class Observed:
    """What one request produced: per choice the tokens and the top logprobs of every step."""

    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[dict[str, float]]] = field(default_factory=list)
    cached_tokens: int = 0
    finish: list[str | None] = field(default_factory=list)
    error: str = ""


class Engine:
    """A started engine and the ways the scenarios ask it."""

    def __init__(self, client: Any, guarded: bool) -> None:
        self.client = client
        self.guarded = guarded
        self.serial = 0

    async def ask(
        self, ids: list[int], what: Plan | None = None, *, ticket: str | None = None, **params: Any,
    ) -> Observed:
        """Generate for `ids`; a guarded engine gets a ticket for `what` (the empty plan) unless one is given."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        self.serial += 1
        name = f"request-{self.serial}"
        what = what or plan(len(ids))
        salt = cache_salt(f"tenant-{what.tenant_index}", what, b"k" * 32)
        options: dict[str, Any] = {"max_tokens": 4, "temperature": 0.0, "logprobs": TOP, "ignore_eos": True, **params}
        if self.guarded:
            signed = sign(what, salt, ids, read_key(), now_s=time.time()) if ticket is None else ticket
            options["extra_args"] = {"guard": signed} if signed else None
        sampling = SamplingParams(**options, output_kind=RequestOutputKind.FINAL_ONLY)
        seen = Observed()
        try:
            async for output in self.client.generate(
                {"prompt_token_ids": ids, "cache_salt": salt}, sampling, request_id=name
            ):
                seen.cached_tokens = output.num_cached_tokens or 0
                for choice in output.outputs:
                    seen.tokens.append(list(choice.token_ids))
                    seen.finish.append(choice.finish_reason)
                    steps = choice.logprobs or []
                    seen.logprobs.append([{str(t): entry.logprob for t, entry in step.items()} for step in steps])
        except Exception as error:  # noqa: BLE001 - the scenario records how a refused request ends
            seen.error = f"{type(error).__name__}: {error}"
        return seen

    async def batch(self, asked: list[tuple[list[int], Plan | None]], **params: Any) -> list[Observed]:
        """All requests in one step: they are queued while the engine is paused."""
        await self.client.pause_generation(mode="keep", clear_cache=False)
        tasks = []
        for ids, what in asked:
            tasks.append(asyncio.create_task(self.ask(ids, what, **params)))
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        await self.client.resume_generation()
        return list(await asyncio.gather(*tasks))

    async def counters(self) -> dict[str, int]:
        """Counters of the first rank."""
        ranks: list[dict[str, int]] = await self.client.collective_rpc("guard_counters")
        return ranks[0]

    async def counted(self, ids: list[int], what: Plan | None = None, **params: Any) -> dict[str, Any]:
        """One request and how it moved the counters."""
        before = await self.counters()
        seen = await self.ask(ids, what, **params)
        after = await self.counters()
        return {"seen": vars(seen), "moved": moved(before, after)}


def moved(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """By how much every counter grew; one that did not exist before was zero."""
    return {name: count - before.get(name, 0) for name, count in after.items()}


@dataclass(frozen=True)
class ForbiddenWords:
    """A resident automaton: `single` spells a forbidden word, `first` and `second` together a forbidden pair."""

    digest: str
    single: int
    first: int
    second: int

    @classmethod
    async def load(cls, engine: Engine, tokenizer: Any) -> ForbiddenWords:
        """Make the automaton resident in every worker."""
        from guard.classifiers.automaton import Automaton
        from guard.classifiers.vocabulary import Vocabulary
        from guard.engine.loading import make_resident

        spelled: dict[int, str] = {}
        for token in range(len(tokenizer)):
            text = tokenizer.decode([token])
            if text[:1] == " " and len(text) > 4 and text[1:].isascii() and text[1:].isalpha() and text.islower():
                spelled[token] = text[1:]
        single, first, second = list(spelled)[-3:]
        forbidden = [spelled[single], f"{spelled[first]} {spelled[second]}"]
        automaton = Automaton.compile(forbidden, Vocabulary.from_tokenizer(tokenizer))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "automaton"
            automaton.save(path)
            await make_resident(engine.client, "constraint", path, automaton.digest)
        return cls(automaton.digest, single, first, second)

    def pair_params(self, max_tokens: int) -> dict[str, Any]:
        """Sampling that says both words of the pair in random order."""
        allowed = [self.first, self.second]
        return {"allowed_token_ids": allowed, "max_tokens": max_tokens, "temperature": 2.0}


class FrozenCounters:
    """The same engine, seen as if the compiled model did not contain the guard's op."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._seen: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def collective_rpc(self, method: str, **options: Any) -> Any:
        """The first counters for ever."""
        answer = await self._client.collective_rpc(method, **options)
        if method != "guard_counters":
            return answer
        self._seen = self._seen or answer
        return self._seen


def _metric(name: str) -> float:
    from prometheus_client import REGISTRY

    return sum(sample.value for family in REGISTRY.collect() for sample in family.samples if sample.name == name)


def preemptions() -> float:
    """Preempted requests so far, from vLLM's own metric."""
    return _metric("vllm:num_preemptions_total")


def drafted_tokens() -> float:
    """Tokens that the drafter proposed so far, from vLLM's own metric."""
    return _metric("vllm:spec_decode_num_draft_tokens_total")


def engine_arguments(model: str, guarded: bool, runner: str, ngram: bool) -> Any:
    """The same small engine for all; float32, so that results can be compared bit by bit."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    options: dict[str, Any] = {
        "model": model, "dtype": "float32", "max_model_len": 256, "max_num_seqs": BATCH, "block_size": BLOCK_TOKENS,
        "num_gpu_blocks_override": CACHE_BLOCKS, "max_num_batched_tokens": 512, "seed": 0,
        "long_prefill_token_threshold": CHUNK_TOKENS, "logprobs_mode": "processed_logprobs",
        "enforce_eager": runner == "v2", "enable_prefix_caching": True,
    }
    if ngram:
        options["speculative_config"] = {
            "method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 2,
        }
    if guarded:
        from guard.engine import compat, flags
        from guard.packs.fingerprint import model_fingerprint

        options |= {
            "worker_cls": flags.WORKER, "scheduler_cls": flags.SCHEDULER,
            "logits_processors": [flags.LOGITS_PROCESSOR], "additional_config": compat.additional_config(
                edits=compat.EditSettings(
                    sites="all", max_slots=EDIT_SLOTS, fingerprint=model_fingerprint(Path(model))
                )
            ),
        }
    return AsyncEngineArgs(**options)
