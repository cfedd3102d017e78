"""One engine of `bench/tenants.py`: reads commands as JSON lines on standard input, answers with JSON lines.

    python bench/tenants_engine.py MODEL SITES BATCH DUMMY

SITES is `bare` (stock vLLM) or what `--guard-sites` takes. A command {"tenants": K, "max_tokens": N} runs one batch in
which request i carries the pack of tenant i mod K at strength 0 (K = 0: no pack); the answer holds output tokens per
second, the median time per output token, the times between the tokens of one request and a digest of the tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from guard.engine import compat, flags
from guard.engine.selftest_edits import make_resident
from guard.interventions.sae import SaeConfig, SaeFeatures, save_sae
from guard.plan import EditLane, Plan
from guard.site import Site
from guard.ticket import EXTRA_ARG, cache_salt, create_key, read_key, sign

TENANTS = 256
RANK = 16
PROMPT_TOKENS = 8
BARE = "bare"


def arguments(model: str, sites: str, batch: int, dummy: bool) -> AsyncEngineArgs:
    """The same engine for all, with the guard's anchors unless it is bare."""
    options: dict[str, Any] = {
        "model": model, "dtype": "bfloat16", "max_model_len": 256, "max_num_seqs": batch, "seed": 0,
        "max_num_batched_tokens": 4096, "enable_prefix_caching": False, "load_format": "dummy" if dummy else "auto",
    }
    if sites != BARE:
        edits = compat.EditSettings(sites=sites, max_slots=TENANTS, max_rank=RANK)
        options |= {
            "worker_cls": flags.WORKER, "scheduler_cls": flags.SCHEDULER,
            "logits_processors": [flags.LOGITS_PROCESSOR], "logprobs_mode": "processed_logprobs",
            "additional_config": compat.additional_config(edits=edits),
        }
    return AsyncEngineArgs(**options)


async def load_packs(client: Any, folder: Path) -> list[str]:
    """A clamp of 16 random features at every site for each tenant, resident in the engine."""
    ping = (await client.collective_rpc("guard_ping"))[0]
    sites, width = [Site.parse(text) for text in ping["sites"]], int(ping["width"])
    if not sites:
        return []
    digests = []
    for tenant in range(TENANTS):
        generator = torch.Generator().manual_seed(tenant)
        features = SaeFeatures(
            encoder=torch.randn(RANK, width, generator=generator), encoder_bias=torch.zeros(RANK),
            threshold=torch.zeros(RANK), decoder=torch.randn(RANK, width, generator=generator),
        )
        path = folder / f"{tenant}.safetensors"
        pack = save_sae(
            path, dict.fromkeys(sites, features), SaeConfig(value=0.0, gate="own"),
            model_fingerprint=ping["fingerprint"], fit_data_digest="0" * 64, fit_report={}, licence="Apache-2.0",
        )
        await make_resident(client, path, pack.content_hash)
        path.unlink()
        digests.append(pack.content_hash)
    return digests


async def run(
    client: Any, digests: list[str], guarded: bool, batch: int, tenants: int, max_tokens: int
) -> dict[str, Any]:
    """One batch."""
    per_token: list[float] = []
    steps: list[float] = []
    texts: dict[int, list[int]] = {}

    async def ask(index: int) -> None:
        generator = random.Random(index)
        ids = [generator.randrange(10, 4000) for _ in range(PROMPT_TOKENS)]
        edits = (EditLane(pack=digests[index % tenants], strength=0.0),) if tenants else ()
        plan = Plan(tenant_index=index, policy_version=f"{time.time()}", prompt_length=len(ids), edits=edits)
        salt = cache_salt(str(index), plan, b"k" * 32)
        extra = {EXTRA_ARG: sign(plan, salt, ids, read_key(), now_s=time.time())} if guarded else None
        params = SamplingParams(
            max_tokens=max_tokens, temperature=0.0, ignore_eos=True, extra_args=extra, detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        arrived: list[float] = []
        async for output in client.generate(
            {"prompt_token_ids": ids, "cache_salt": salt}, params, request_id=f"{index}-{time.time()}"
        ):
            arrived.append(time.perf_counter())
            texts.setdefault(index, []).extend(output.outputs[0].token_ids)
        per_token.append((arrived[-1] - arrived[0]) / max(1, max_tokens - 1))
        if index == 0:
            steps.extend(later - earlier for earlier, later in pairwise(arrived))

    # all requests in one step from the start
    await client.pause_generation(mode="keep", clear_cache=False)
    tasks = [asyncio.create_task(ask(index)) for index in range(batch)]
    await asyncio.sleep(1.0)
    started = time.perf_counter()
    await client.resume_generation()
    await asyncio.gather(*tasks)
    elapsed = time.perf_counter() - started
    digest = hashlib.sha256(json.dumps([texts[index] for index in range(batch)]).encode()).hexdigest()
    return {
        "tokens_per_s": batch * max_tokens / elapsed, "tpot_s": median(per_token), "steps_s": steps, "digest": digest,
    }


async def main() -> None:
    """Answer commands until standard input ends."""
    model, sites, batch, dummy = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "dummy"
    guarded = sites != BARE
    create_key()
    client = AsyncLLM.from_engine_args(arguments(model, sites, batch, dummy))
    try:
        with tempfile.TemporaryDirectory() as folder:
            digests = await load_packs(client, Path(folder)) if guarded else []
        print(json.dumps({"ready": True}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            before = (await client.collective_rpc("guard_counters"))[0] if guarded else {}
            answer = await run(client, digests, guarded, batch, asked["tenants"], asked["max_tokens"])
            after = (await client.collective_rpc("guard_counters"))[0] if guarded else {}
            answer["edited_tokens"] = after.get("edited_tokens", 0) - before.get("edited_tokens", 0)
            print(json.dumps(answer), flush=True)
    finally:
        client.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
