"""One suite for both runners of a real engine: V1 compiled, and Model Runner V2 in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from guard.kernels.corrupt import CorruptionTable, corrupt
from guard.plan import Corruption

_SPEC = importlib.util.spec_from_file_location("engine_cases", Path(__file__).with_name("cases.py"))
cases: Any = importlib.util.module_from_spec(_SPEC)  # type: ignore[arg-type]
_SPEC.loader.exec_module(cases)  # type: ignore[union-attr]

pytestmark = pytest.mark.vllm
RUNNERS = ("v1", "v2")
TOLERANCE = 2e-3


@pytest.fixture(scope="session", params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> str:
    """The runner under test."""
    return str(request.param)


@pytest.fixture(scope="session")
def guarded(engine_results: Any, runner: str) -> dict[str, Any]:
    """What the guarded engine observed."""
    return engine_results("guarded", runner)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Any:
    """The same model in transformers: token ids and corruption -> logprobs [vocab] after the last token."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logprobs(ids: list[int], part: Corruption | None = None) -> torch.Tensor:
        hidden = model.get_input_embeddings()(torch.tensor(ids)).clone()
        if part is not None:
            slots = torch.zeros(len(ids), dtype=torch.int32)
            for start, end in part.ranges:
                slots[start:end] = 1
            table = CorruptionTable.empty(2)
            table.set(1, kind=part.kind, dims=part.dims, rho=part.rho, seed=part.seed)
            corrupt(hidden, slots, torch.arange(len(ids)), table)
        return model(inputs_embeds=hidden[None]).logits[0, -1].float().log_softmax(-1)  # type: ignore[no-any-return]

    return logprobs


def first_step(seen: dict[str, Any]) -> dict[int, float]:
    """Top logprobs of the first generated token."""
    return {int(token): value for token, value in seen["logprobs"][0][0].items()}


def matches(seen: dict[str, Any], expected: torch.Tensor) -> bool:
    """Whether the first step's logprobs are the expected ones."""
    return all(
        math.isclose(value, float(expected[token]), abs_tol=TOLERANCE, rel_tol=TOLERANCE)
        for token, value in first_step(seen).items()
    )


def finite(step: dict[str, float]) -> list[str]:
    """Tokens of one step that were not masked."""
    return [token for token, value in step.items() if math.isfinite(value)]


def says(pair: list[int], tokens: list[int]) -> bool:
    """Whether the two tokens of `pair` follow each other."""
    return any(list(two) == pair for two in zip(tokens, tokens[1:], strict=False))


def covered(part: Corruption) -> int:
    """Number of positions of a corruption."""
    return sum(end - start for start, end in part.ranges)


def test_the_self_test_of_a_healthy_engine_passes_on_every_rank(guarded: dict[str, Any], runner: str) -> None:
    report = guarded["selftest"]
    assert report["runner"] == runner
    assert report["ranks"] == 1
    assert report["layers"] == 2
    assert report["embedding"].endswith("embed_tokens")


@pytest.mark.parametrize(
    ("fault", "message"), [("frozen_counters", "corrupted 0 tokens instead of 3"), ("other_key", "not answered")]
)
def test_the_self_test_of_an_unhealthy_engine_fails(guarded: dict[str, Any], fault: str, message: str) -> None:
    assert message in guarded["unhealthy"][fault]


def test_an_unplanned_request_alone_is_bitwise_stock(guarded: dict[str, Any], engine_results: Any, runner: str) -> None:
    stock = engine_results("stock", runner)["stock"]["alone"]
    assert guarded["stock"]["alone"]["tokens"] == stock["tokens"]
    assert guarded["stock"]["alone"]["logprobs"] == stock["logprobs"]


def test_an_unplanned_request_among_fifteen_corrupted_is_bitwise_stock(
    guarded: dict[str, Any], engine_results: Any, runner: str,
) -> None:
    stock, ours = engine_results("stock", runner)["stock"]["batch"], guarded["stock"]["batch"]
    assert ours[0]["tokens"] == stock[0]["tokens"]
    assert ours[0]["logprobs"] == stock[0]["logprobs"]
    assert all(mine["logprobs"] != plain["logprobs"] for mine, plain in zip(ours[1:], stock[1:], strict=True))


def test_exactly_the_planned_positions_are_corrupted(guarded: dict[str, Any], reference: Any) -> None:
    short = guarded["corrupted"]["short"]
    assert matches(short["seen"], reference(cases.PROMPT_ALONE, cases.PLAN_SHORT))
    assert not matches(short["seen"], reference(cases.PROMPT_ALONE))
    assert short["moved"]["corrupted_tokens"] == covered(cases.PLAN_SHORT)
    assert short["moved"]["expected_corrupted_tokens"] == covered(cases.PLAN_SHORT)


def test_the_empty_plan_moves_no_counter(guarded: dict[str, Any], reference: Any) -> None:
    empty = guarded["corrupted"]["empty"]
    assert matches(empty["seen"], reference(cases.PROMPT_ALONE))
    assert set(empty["moved"].values()) == {0}


def test_a_chunked_prompt_is_corrupted_like_a_whole_one(guarded: dict[str, Any], reference: Any) -> None:
    long = guarded["corrupted"]["long"]
    assert cases.LONG > 2 * cases.CHUNK_TOKENS
    assert matches(long["seen"], reference(cases.PROMPT_LONG, cases.PLAN_LONG))
    assert long["moved"]["corrupted_tokens"] == covered(cases.PLAN_LONG)


def test_a_seeded_request_in_chunks_is_answered_and_repeatable(guarded: dict[str, Any]) -> None:
    first, second = guarded["seeded_in_chunks"]
    assert len(first["tokens"][0]) > 1
    assert first["tokens"] == second["tokens"]


def test_a_preempted_request_is_recomputed_with_the_same_corruption(guarded: dict[str, Any]) -> None:
    seen = guarded["preempted"]
    assert seen["preemptions"] >= 1
    for alone, together in zip(seen["alone"], seen["together"], strict=True):
        assert together["error"] == ""
        assert together["tokens"] == alone["tokens"]
        for ours, expected in zip(together["logprobs"][0], alone["logprobs"][0], strict=True):
            assert all(math.isclose(ours[token], expected[token], abs_tol=TOLERANCE) for token in finite(expected))
    moved = seen["moved"]
    assert moved["corrupted_tokens"] == moved["expected_corrupted_tokens"]
    assert moved["corrupted_tokens"] > 3 * 35, "no corrupted position was computed again"


def test_the_same_plan_hits_the_prefix_cache_and_gives_the_same_answer(guarded: dict[str, Any]) -> None:
    first, same = guarded["cached"]["first"], guarded["cached"]["same"]
    assert first["seen"]["cached_tokens"] == 0
    assert same["seen"]["cached_tokens"] > 0
    assert same["seen"]["tokens"] == first["seen"]["tokens"]
    assert same["moved"]["corrupted_tokens"] == same["moved"]["expected_corrupted_tokens"]


@pytest.mark.parametrize("other", ["other_plan", "other_tenant", "no_plan", "no_plan_other_tenant"])
def test_no_block_is_shared_across_plans_or_tenants(guarded: dict[str, Any], other: str) -> None:
    assert guarded["cached"][other]["seen"]["cached_tokens"] == 0


def test_unplanned_requests_of_one_tenant_share_blocks(guarded: dict[str, Any], reference: Any) -> None:
    again = guarded["cached"]["no_plan_again"]["seen"]
    assert again["cached_tokens"] > 0
    assert matches(again, reference(cases.prompt_ids(300, 100)))


def test_tenants_in_one_batch_get_their_own_plans(guarded: dict[str, Any], reference: Any) -> None:
    ids = cases.PROMPT_ALONE
    for seen, part in zip(guarded["mixed"], (None, cases.PLAN_SHORT, cases.PLAN_OTHER, None), strict=True):
        assert matches(seen, reference(ids, part))


def test_every_choice_of_n_is_corrupted(guarded: dict[str, Any], reference: Any) -> None:
    four = guarded["four"]
    assert len(four["seen"]["tokens"]) == 4
    expected = reference(cases.PROMPT_ALONE, cases.PLAN_SHORT)
    for choice in range(4):
        top = {int(token): value for token, value in four["seen"]["logprobs"][choice][0].items()}
        assert all(math.isclose(value, float(expected[token]), abs_tol=TOLERANCE) for token, value in top.items())
    assert four["moved"]["corrupted_tokens"] == four["moved"]["expected_corrupted_tokens"] > 0


@pytest.mark.parametrize(
    "ticket",
    ["missing", "garbage", "forged", "expired", "other_prompt", "other_length", "no_salt", "changed"],
)
def test_a_request_without_a_valid_ticket_is_refused(guarded: dict[str, Any], ticket: str) -> None:
    seen = guarded["refused"][ticket]
    assert not any(seen["tokens"])
    assert seen["error"] or seen["finish"] == ["error"]


def test_the_engine_goes_on_after_refusals(guarded: dict[str, Any], reference: Any) -> None:
    assert matches(guarded["refused"]["alive"], reference(cases.PROMPT_ALONE))


def test_a_dummy_step_corrupts_nothing(guarded: dict[str, Any]) -> None:
    assert guarded["dummy"]["after"] == guarded["dummy"]["before"]


def test_a_forbidden_word_is_masked_for_the_constrained_request_only(guarded: dict[str, Any]) -> None:
    seen = guarded["constrained"]
    assert seen["token"] in seen["free"]["seen"]["tokens"][0]
    for which, choices in (("bound", 1), ("alone", 1), ("four", 4)):
        assert len(seen[which]["seen"]["tokens"]) == choices
        assert all(choice and seen["token"] not in choice for choice in seen[which]["seen"]["tokens"])


def test_a_forbidden_pair_is_masked_in_every_choice_although_each_word_is_allowed(guarded: dict[str, Any]) -> None:
    seen = guarded["constrained"]
    pair, free, bound = seen["pair"], seen["pair_free"]["seen"]["tokens"], seen["pair_bound"]["seen"]["tokens"]
    assert len(free) == len(bound) == 4
    assert any(says(pair, choice) for choice in free)
    assert not any(says(pair, choice) for choice in bound)
    assert {token for choice in bound for token in choice} == set(pair)
    assert seen["pair_bound"]["moved"]["masked_tokens"] > 0


def test_a_forbidden_pair_stays_masked_after_preemption(guarded: dict[str, Any]) -> None:
    seen, pair = guarded["preempted_and_constrained"], guarded["constrained"]["pair"]
    assert seen["preemptions"] >= 1
    assert says(pair, seen["free"]["tokens"][0])
    for together in seen["together"]:
        assert len(together["tokens"][0]) == 40
        assert not says(pair, together["tokens"][0])
    assert seen["moved"]["masked_tokens"] > 0


def check_openings(seen: dict[str, list[str]]) -> None:
    """Every answer of an opened request begins with a wording, and no other request's answer is touched."""
    assert len(seen["hot"]) == len(seen["masked"]) == 4
    opened = seen["alone"] + seen["hot"] + seen["masked"]
    assert all(answer.startswith(cases.OPENINGS) for answer in opened), seen
    free, bound = seen["batch"]
    assert bound.startswith(cases.OPENINGS)
    assert not free.startswith(cases.OPENINGS) and free == seen["free"][0]
    # it goes on in the model's own words
    assert any(answer not in cases.OPENINGS for answer in seen["alone"] + seen["hot"])


def test_an_answer_opens_with_a_wording_and_goes_on_freely(guarded: dict[str, Any]) -> None:
    check_openings(guarded["opened"])


def test_an_answer_opens_with_a_wording_under_speculative_decoding(engine_results: Any) -> None:
    check_openings(engine_results("guarded", "v2", "--ngram")["opened"])


def test_drafts_of_a_forbidden_pair_are_masked(engine_results: Any) -> None:
    results = engine_results("guarded", "v2", "--ngram")
    seen, pair = results["drafted"], results["constrained"]["pair"]
    assert min(seen["drafted"]) > 0, "nothing was drafted"
    assert says(pair, seen["pair_free"]["seen"]["tokens"][0])
    bound = seen["pair_bound"]["seen"]["tokens"][0]
    assert len(bound) == 24
    assert not says(pair, bound)
    assert results["selftest"]["runner"] == "v2"


def test_the_scheduler_holds_no_reference_to_finished_requests(guarded: dict[str, Any]) -> None:
    engine = guarded["constrained"]["engine"]
    assert engine["references"] == {}
    assert engine["refused_requests"] >= 10
    assert engine["admitted_requests"] > 50


def test_speculative_decoding_keeps_corruption_and_constraint(engine_results: Any, reference: Any) -> None:
    seen = engine_results("guarded", "v2", "--ngram")
    drafted = seen["drafted"]
    ids, part = drafted["ids"], cases.corruption(3, (4, 9), (30, 33))
    assert matches(drafted["corrupted"]["seen"], reference(ids, part))
    assert matches(drafted["empty"]["seen"], reference(ids))
    assert drafted["corrupted"]["moved"]["corrupted_tokens"] == covered(part)
    plain, corrupted = drafted["batch"]
    assert plain["tokens"] == drafted["empty"]["seen"]["tokens"]
    assert corrupted["tokens"] == drafted["corrupted"]["seen"]["tokens"]
    constrained = seen["constrained"]
    assert constrained["token"] in constrained["free"]["seen"]["tokens"][0]
    for which in ("bound", "alone"):
        tokens = constrained[which]["seen"]["tokens"][0]
        assert tokens
        assert constrained["token"] not in tokens
