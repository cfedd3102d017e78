"""The planner: every verdict and policy gives the plan of its table, on the right tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.plan import MAX_EXEMPT_PATTERNS
from guard.planner import constraint_of, corruption_seed, decide, text_start
from guard.policy import ConstraintPolicy, CorruptionPolicy, Policy, Target, Tenant, TenantSpec, tenant_of
from guard.verdict import NOTHING, UNKNOWN, DecodedPrompt, Span, TargetHit, Verdict

# one character a token, special tokens at 0, 8 and 9: "S" + "who is X" ... as the model would read a chat turn
TEXT = "^who is Xavi$~"
PROMPT = DecodedPrompt(
    tuple(range(len(TEXT))), TEXT, tuple((i, i + 1) for i in range(len(TEXT))), tuple(c in "^$~" for c in TEXT)
)
NAMED = Verdict((TargetHit(0, 0.9, "lexical", ((8, 12),)),))
MEANT = Verdict((TargetHit(0, 0.7, "semantic"),))


class Characters:
    """Token ranges of a prompt with one character a token."""

    def token_ranges(self, prompt: DecodedPrompt, char_spans: Iterable[Span]) -> tuple[Span, ...]:
        return tuple(sorted(span for span in char_spans if span[0] < span[1]))

    def ordinary_ranges(self, prompt: DecodedPrompt) -> tuple[Span, ...]:
        return ((1, 12),)

    def last_turn(self, prompt: DecodedPrompt) -> Span:
        return (5, 12)


@dataclass(frozen=True)
class Fitted:
    rho: float = 3.0
    scope: Literal["spans", "prompt"] = "spans"


def tenant(**policy: Any) -> Tenant:
    """A tenant with one target."""
    return tenant_of(TenantSpec(name="acme", policy=Policy(**policy), targets=(Target(name="Xavi"),)), 4)


def decided(owner: Tenant, verdict: Verdict, **options: Any) -> Any:
    return decide(owner, verdict, PROMPT, Characters(), **options)


@pytest.mark.parametrize(
    ("action", "verdict", "outcome"),
    [
        ("forget", NOTHING, "pass"),
        ("refuse", NOTHING, "pass"),
        ("monitor", NOTHING, "pass"),
        ("forget", NAMED, "forget"),
        ("refuse", NAMED, "refuse"),
        ("monitor", NAMED, "monitor"),
        ("forget", UNKNOWN, "unknown"),
        ("refuse", UNKNOWN, "unknown"),
        ("monitor", UNKNOWN, "unknown"),
    ],
)
def test_outcome_follows_verdict_and_action(action: str, verdict: Verdict, outcome: str) -> None:
    decision = decided(tenant(action=action), verdict, constraint_digest="d")
    assert decision.action == outcome
    assert decision.plan.empty == (outcome != "forget")
    assert (decision.plan.tenant_index, decision.plan.prompt_length) == (4, len(TEXT))


def test_spans_of_the_target_are_corrupted() -> None:
    assert decided(tenant(), NAMED, fitted=Fitted()).plan.corruption.ranges == ((8, 12),)


def test_without_spans_the_last_user_turn_is_corrupted() -> None:
    assert decided(tenant(), MEANT, fitted=Fitted()).plan.corruption.ranges == ((5, 12),)


def test_prompt_scope_covers_all_ordinary_tokens() -> None:
    assert decided(tenant(), NAMED, fitted=Fitted(scope="prompt")).plan.corruption.ranges == ((1, 12),)
    own = tenant(corruption=CorruptionPolicy(scope="prompt"))
    assert decided(own, NAMED, fitted=Fitted(scope="spans")).plan.corruption.ranges == ((1, 12),)


def test_strength_is_the_policys_else_the_fitted_one() -> None:
    assert decided(tenant(), NAMED, fitted=Fitted(rho=3.5)).plan.corruption.rho == 3.5
    assert decided(tenant(corruption=CorruptionPolicy(rho=0.0)), NAMED, fitted=Fitted()).plan.corruption.rho == 0.0


def test_seed_belongs_to_tenant_and_policy_version() -> None:
    first, second = tenant(), tenant(action="monitor")
    assert corruption_seed(first) == corruption_seed(tenant())
    assert corruption_seed(first) != corruption_seed(second)
    assert 0 <= corruption_seed(first) < 2**63


def test_disabled_stages_leave_the_plan() -> None:
    only_mask = decided(tenant(corruption=CorruptionPolicy(enabled=False)), NAMED, constraint_digest="d").plan
    assert only_mask.corruption is None and only_mask.constraint is not None
    only_noise = decided(tenant(constraint=ConstraintPolicy(enabled=False)), NAMED, constraint_digest="d").plan
    assert only_noise.corruption is not None and only_noise.constraint is None
    assert decided(tenant(), NAMED, constraint_digest=None).plan.constraint is None


def test_a_match_may_begin_after_the_last_special_token() -> None:
    assert text_start(PROMPT) == len(TEXT)
    plain = DecodedPrompt((1, 2), "ab", ((0, 1), (1, 2)), (False, False))
    assert text_start(plain) == 0
    assert decided(tenant(), NAMED, constraint_digest="d").plan.constraint.start == len(TEXT)


@given(st.sets(st.integers(0, 10_000)))
def test_exemptions_are_sorted_and_limited(exempt: set[int]) -> None:
    kept = constraint_of(PROMPT, "d", exempt).exempt
    assert list(kept) == sorted(exempt)[:MAX_EXEMPT_PATTERNS]


@given(
    st.sampled_from(["forget", "refuse", "monitor"]),
    st.lists(st.tuples(st.integers(1, 11), st.integers(1, 11)).map(lambda s: (min(s), max(s))), max_size=3),
)
def test_the_same_inputs_give_the_same_plan(action: str, spans: list[Span]) -> None:
    verdict = Verdict((TargetHit(0, 0.8, "lexical", tuple(spans)),))
    first = decided(tenant(action=action), verdict, constraint_digest="d", fitted=Fitted())
    assert first == decided(tenant(action=action), verdict, constraint_digest="d", fitted=Fitted())
    if first.plan.corruption is not None:
        assert all(0 <= start < end <= len(TEXT) for start, end in first.plan.corruption.ranges)
