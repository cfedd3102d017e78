"""Lanes of a prompt: which packs, how strongly, in which order; and the planner's decision when there are too many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.lanes import edit_lanes
from guard.plan import MAX_LANES, EditLane
from guard.planner import Decision, decide
from guard.policy import Policy, Target, Tenant, TenantSpec, tenant_of
from guard.verdict import NOTHING, UNKNOWN, DecodedPrompt, Span, TargetHit, Verdict

PROMPT = DecodedPrompt((1, 2, 3), "abc", ((0, 1), (1, 2), (2, 3)), (False,) * 3)
NAMES = ("Xavi", "Ada", "Lin")


class Everything:
    """Token ranges that cover the whole prompt."""

    def token_ranges(self, prompt: DecodedPrompt, char_spans: Iterable[Span]) -> tuple[Span, ...]:
        return ((0, 3),)

    def ordinary_ranges(self, prompt: DecodedPrompt) -> tuple[Span, ...]:
        return ((0, 3),)

    def last_turn(self, prompt: DecodedPrompt) -> Span:
        return (0, 3)


def tenant(*edits: dict[str, Any], action: str = "forget", names: Iterable[str] = NAMES) -> Tenant:
    """A tenant with three targets and `edits`."""
    policy = Policy.model_validate({"edits": edits, "action": action})
    return tenant_of(TenantSpec(name="acme", policy=policy, targets=tuple(Target(name=n) for n in names)), 4)


def hits(**scores: float) -> tuple[TargetHit, ...]:
    """Matches by the target's name, best first."""
    found = [TargetHit(NAMES.index(name), score, "semantic") for name, score in scores.items()]
    return tuple(sorted(found, key=lambda hit: -hit.score))


def decided(owner: Tenant, verdict: Verdict) -> Decision:
    return decide(owner, verdict, PROMPT, Everything())


def test_an_edit_of_any_target_applies_to_flagged_prompts_only() -> None:
    owner = tenant({"pack": "a", "strength": 2.0, "phase": "generation"})
    assert edit_lanes(owner, hits(Ada=0.6)) == (EditLane(pack="a", strength=2.0, phase="generation"),)
    assert edit_lanes(owner) == ()


def test_an_edit_with_targets_needs_one_of_them() -> None:
    owner = tenant({"pack": "a", "strength": 2.0, "targets": {"Ada": 0.5, "Lin": -3.0}})
    assert edit_lanes(owner, hits(Xavi=0.9)) == ()
    assert [lane.strength for lane in edit_lanes(owner, hits(Ada=0.9, Xavi=0.6))] == [1.0]
    assert [lane.strength for lane in edit_lanes(owner, hits(Ada=0.9, Lin=0.6))] == [-6.0]


def test_the_response_reads_the_best_score_of_the_matching_targets() -> None:
    curve = [{"score": 0.5, "strength": 0.0}, {"score": 1.0, "strength": 1.0}]
    owner = tenant({"pack": "a", "strength": 4.0, "targets": {"Ada": 1.0, "Lin": 1.0}, "response": curve})
    assert [lane.strength for lane in edit_lanes(owner, hits(Xavi=1.0, Ada=0.75, Lin=0.6))] == [pytest.approx(2.0)]
    assert edit_lanes(owner, hits(Ada=0.5)) == ()


def test_edits_of_every_request_come_first_then_the_best_scores() -> None:
    owner = tenant(
        {"pack": "lin", "targets": {"Lin": 1.0}}, {"pack": "ada", "targets": {"Ada": 1.0}},
        {"pack": "style", "when": "always"}, {"pack": "xavi", "targets": {"Xavi": 1.0}},
    )
    packs = [lane.pack for lane in edit_lanes(owner, hits(Ada=0.6, Lin=0.7, Xavi=0.9))]
    assert packs == ["style", "xavi", "lin", "ada"]


def test_a_pack_has_one_lane_with_the_largest_magnitude() -> None:
    owner = tenant(
        {"pack": "a", "when": "always", "phase": "prompt", "strength": 1.0}, {"pack": "b", "targets": {"Ada": 1.0}},
        {"pack": "a", "phase": "generation", "strength": -3.0},
    )
    assert edit_lanes(owner, hits(Ada=0.9)) == (
        EditLane(pack="a", strength=-3.0, phase="both"), EditLane(pack="b", strength=1.0),
    )
    assert edit_lanes(owner) == (EditLane(pack="a", strength=1.0, phase="prompt"),)


def test_a_strength_of_zero_makes_no_lane() -> None:
    assert edit_lanes(tenant({"pack": "a", "strength": 0.0}, {"pack": "b", "when": "always", "strength": 0.0})) == ()
    assert edit_lanes(tenant({"pack": "a", "targets": {"Ada": 0.0}}), hits(Ada=1.0)) == ()


def test_factors_do_not_multiply_beyond_the_largest_strength() -> None:
    owner = tenant({"pack": "a", "strength": -50.0, "targets": {"Ada": 50.0}})
    assert [lane.strength for lane in edit_lanes(owner, hits(Ada=0.9))] == [-100.0]


def test_more_packs_than_lanes_refuse_the_request() -> None:
    owner = tenant(*({"pack": f"pack-{number}"} for number in range(MAX_LANES + 1)))
    refused = decided(owner, Verdict(hits(Ada=0.9)))
    assert (refused.action, refused.plan.empty) == ("refuse", True)
    assert decided(owner, NOTHING).action == "pass"


@pytest.mark.parametrize(
    ("action", "verdict", "outcome", "packs"),
    [
        ("forget", NOTHING, "pass", ["style"]),
        ("forget", UNKNOWN, "unknown", ["style"]),
        ("forget", Verdict(hits(Ada=0.9)), "forget", ["style", "ada"]),
        ("monitor", Verdict(hits(Ada=0.9)), "monitor", ["style"]),
        ("refuse", Verdict(hits(Ada=0.9)), "refuse", []),
        ("refuse", NOTHING, "pass", ["style"]),
    ],
)
def test_edits_of_every_request_apply_to_all_that_reaches_the_engine(
    action: str, verdict: Verdict, outcome: str, packs: list[str]
) -> None:
    owner = tenant({"pack": "ada"}, {"pack": "style", "when": "always"}, action=action)
    decision = decided(owner, verdict)
    assert decision.action == outcome
    assert [lane.pack for lane in decision.plan.edits] == packs


def test_a_tenant_without_a_list_is_edited_too() -> None:
    decision = decided(tenant({"pack": "style", "when": "always"}, names=()), NOTHING)
    assert (decision.action, [lane.pack for lane in decision.plan.edits]) == ("pass", ["style"])


EDITS = st.fixed_dictionaries(
    {
        "pack": st.sampled_from(["a", "b", "c", "d", "e", "f"]),
        "strength": st.floats(-100.0, 100.0),
        "phase": st.sampled_from(["prompt", "generation", "both"]),
        "targets": st.dictionaries(st.sampled_from(NAMES), st.floats(-100.0, 100.0)),
    }
)
MATCHES = st.dictionaries(st.sampled_from(NAMES), st.floats(0.5, 1.0), min_size=1)


@given(st.lists(EDITS, max_size=8), MATCHES)
def test_the_same_inputs_give_the_same_lanes(edits: list[dict[str, Any]], scores: dict[str, float]) -> None:
    owner, found = tenant(*edits), hits(**scores)
    lanes = edit_lanes(owner, found)
    assert lanes == edit_lanes(tenant(*edits), found)
    assert len({lane.pack for lane in lanes}) == len(lanes)
    assert all(0 < abs(lane.strength) <= 100 for lane in lanes)
    decision = decided(owner, Verdict(found))
    assert decision.action == ("forget" if len(lanes) <= MAX_LANES else "refuse")
    assert decision.plan.edits == (lanes if len(lanes) <= MAX_LANES else ())


@given(st.lists(EDITS, max_size=8), MATCHES)
def test_the_order_of_the_matches_does_not_matter(edits: list[dict[str, Any]], scores: dict[str, float]) -> None:
    found = hits(**scores)
    assert edit_lanes(tenant(*edits), found) == edit_lanes(tenant(*edits), found[::-1])
