"""The canary: before the server says it is ready, real requests must show that every anchor of the guard is in place.

A compiled model can be loaded from a cache, a plugin can be dropped and a version can move a method without any error
message. So the API process sends requests whose outcome is known: a planned prompt must move the corruption counter of
every first-stage rank by exactly the planned tokens, an edited one the counters of every site by its tokens, an
unplanned one neither, a request without a ticket must be refused, and a token that spells a planted word must be masked
although it is the only one that the request allows.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard import __version__
from guard.classifiers.automaton import Automaton
from guard.classifiers.vocabulary import Vocabulary
from guard.engine.loading import make_resident
from guard.engine.log_filter import SELF_TEST
from guard.engine.selftest_edits import check_edits
from guard.errors import EngineMismatchError
from guard.plan import Constraint, Corruption, EditLane, Plan
from guard.ticket import EXTRA_ARG, cache_salt, sign

_PROMPT_TOKENS = 8
_RANGES = ((2, 5),)
_MIN_WORD = 4
_TENANT = "selftest"


async def selftest(engine_client: Any, tokenizer: Any, key: bytes) -> dict[str, Any]:
    """Run the canary through `engine_client` (vLLM's own client, not the guard's proxy) and return a report.

    Raises EngineMismatchError that says which anchor did not answer. Takes a handful of one-token requests.
    """
    pings = await engine_client.collective_rpc("guard_ping")
    _check_pings(pings)
    ids = _prompt(tokenizer)
    empty = Plan(tenant_index=0, policy_version=_version(), prompt_length=len(ids))
    plain = await _moved(engine_client, ids, empty, key)
    _require(all(not moved["corrupted_tokens"] for moved in plain), "a request without a plan was corrupted")
    _require(all(not moved["edited_tokens"] for moved in plain), "a request without a plan was edited")
    corruption = Corruption(kind="gauss", rho=1.0, seed=1, ranges=_RANGES)
    planned = Plan(tenant_index=0, policy_version=_version(), prompt_length=len(ids), corruption=corruption)
    moved = await _moved(engine_client, ids, planned, key)
    for ping, change in zip(pings, moved, strict=True):
        expected = planned.corrupted_tokens() if ping["first_stage"] else 0
        _require(
            change["corrupted_tokens"] == expected,
            f"rank {ping['rank']} corrupted {change['corrupted_tokens']} tokens instead of {expected}; "
            "the model may have been compiled without the guard's op",
        )
    tokens, finish = await _generate(engine_client, ids, None, key, None)
    _require(not tokens, f"a request without a ticket was answered (finish reason {finish!r})")
    masked = await _check_mask(engine_client, tokenizer, ids, key)
    sites = await check_edits(
        engine_client, pings, lambda edits: _moved_by_edits(engine_client, ids, edits, key)
    )
    return {
        "ranks": len(pings), "runner": pings[0]["runner"], "embedding": pings[0]["embedding"],
        "layers": len(pings[0]["layers"]), "corrupted_tokens": planned.corrupted_tokens(), "masked_token": masked,
        "sites": sites, "ticket": "required",
    }


def planted_word(tokenizer: Any) -> tuple[int, str]:
    """A token that spells a whole lower-case word at a word boundary, and the word. Raises EngineMismatchError."""
    special = set(tokenizer.all_special_ids)
    for token in range(len(tokenizer) - 1, -1, -1):
        if token in special:
            continue
        text = tokenizer.decode([token])
        word = text.strip()
        if text == " " + word and len(word) >= _MIN_WORD and word.isascii() and word.isalpha() and word.islower():
            return token, word
    raise EngineMismatchError("the vocabulary has no token that is a whole word; the constraint cannot be self-tested")


async def _check_mask(engine_client: Any, tokenizer: Any, ids: Sequence[int], key: bytes) -> int:
    token, word = planted_word(tokenizer)
    # not a bias: vLLM refuses it together with speculative decoding
    only = [token]
    free = Plan(tenant_index=0, policy_version=_version(), prompt_length=len(ids))
    tokens, _ = await _generate(engine_client, ids, free, key, only)
    _require(tokens == [token], "the only allowed token was not generated without a constraint")
    automaton = Automaton.compile([word], Vocabulary.from_tokenizer(tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "automaton"
        automaton.save(path)
        await make_resident(engine_client, "constraint", path, automaton.digest)
    try:
        rule = Constraint(digest=automaton.digest, start=len(ids))
        bound = Plan(tenant_index=0, policy_version=_version(), prompt_length=len(ids), constraint=rule)
        tokens, _ = await _generate(engine_client, ids, bound, key, only)
    finally:
        await engine_client.collective_rpc("guard_release", args=("constraint", automaton.digest))
    _require(bool(tokens) and token not in tokens, "a forbidden word was generated; the mask is not in place")
    return token


async def _moved_by_edits(
    engine_client: Any, ids: Sequence[int], edits: tuple[EditLane, ...], key: bytes
) -> list[dict[str, int]]:
    plan = Plan(tenant_index=0, policy_version=_version(), prompt_length=len(ids), edits=edits)
    return await _moved(engine_client, ids, plan, key)


async def _moved(engine_client: Any, ids: Sequence[int], plan: Plan, key: bytes) -> list[dict[str, int]]:
    before = await engine_client.collective_rpc("guard_counters")
    tokens, finish = await _generate(engine_client, ids, plan, key, None)
    _require(bool(tokens), f"a request with a valid ticket was not answered (finish reason {finish!r})")
    after = await engine_client.collective_rpc("guard_counters")
    return [{name: new[name] - old.get(name, 0) for name in new} for old, new in zip(before, after, strict=True)]


async def _generate(
    engine_client: Any, ids: Sequence[int], plan: Plan | None, key: bytes, allowed: list[int] | None,
) -> tuple[list[int], str | None]:
    """One greedy token: token ids and finish reason; no tokens when the engine refuses the request."""
    salt, extra = "", None
    if plan is not None:
        salt = cache_salt(_TENANT, plan, key)
        extra = {EXTRA_ARG: sign(plan, salt, ids, key, now_s=time.time())}
    params = SamplingParams(
        max_tokens=1, temperature=0.0, ignore_eos=True, allowed_token_ids=allowed, extra_args=extra,
        output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False,
    )
    prompt: dict[str, Any] = {"prompt_token_ids": list(ids)}
    if salt:
        prompt["cache_salt"] = salt
    tokens: list[int] = []
    finish: str | None = None
    try:
        async for output in engine_client.generate(prompt, params, request_id=f"{SELF_TEST}{uuid.uuid4().hex}"):
            tokens = [int(token) for token in output.outputs[0].token_ids]
            finish = output.outputs[0].finish_reason
    except Exception as error:  # noqa: BLE001 - vLLM reports a refused request by different exceptions
        return [], type(error).__name__
    return ([], finish) if finish == "error" else (tokens, finish)


def _check_pings(pings: Sequence[dict[str, Any]]) -> None:
    _require(bool(pings), "no worker answered")
    digests = {ping["digest"] for ping in pings}
    _require(len(digests) == 1, "workers run different versions of the guard")
    for ping in pings:
        _require(ping["version"] == __version__, f"rank {ping['rank']} runs guard {ping['version']}")
        _require(bool(ping["layers"]), f"rank {ping['rank']} found no decoder layers")
        if ping["first_stage"]:
            _require(bool(ping["embedding"]), f"rank {ping['rank']} has no wrapped embedding")


def _prompt(tokenizer: Any) -> list[int]:
    special = set(tokenizer.all_special_ids)
    ids = [token for token in range(len(tokenizer)) if token not in special][-_PROMPT_TOKENS:]
    _require(len(ids) == _PROMPT_TOKENS, "the vocabulary is too small")
    return ids


def _version() -> str:
    # a fresh salt each time: a cached prompt would not be computed and would not move the counter
    return f"selftest-{uuid.uuid4().hex}"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise EngineMismatchError(f"engine self-test failed: {message}")
