"""Edits of a policy: what is accepted, and the response curve."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guard.edit_policy import EditPolicy, ResponsePoint, response_factor
from guard.policy import Policy, Target, TenantSpec, tenant_of

SCORES = st.floats(0.0, 1.0)


@st.composite
def curves(draw: st.DrawFn) -> tuple[ResponsePoint, ...]:
    """Any curve that a policy accepts."""
    scores = sorted(draw(st.sets(SCORES, min_size=1, max_size=8)))
    strengths = sorted(draw(st.lists(st.floats(0.0, 100.0), min_size=len(scores), max_size=len(scores))))
    points = [ResponsePoint(score=score, strength=strength) for score, strength in zip(scores, strengths, strict=True)]
    return EditPolicy(pack="a", response=tuple(points)).response


@given(curves(), st.lists(SCORES, min_size=2, max_size=20))
def test_a_higher_score_never_edits_less(points: tuple[ResponsePoint, ...], scores: list[float]) -> None:
    factors = [response_factor(points, score) for score in sorted(scores)]
    assert all(before <= after for before, after in pairwise(factors))


@given(curves(), SCORES)
def test_the_factor_stays_between_the_ends_of_the_curve(points: tuple[ResponsePoint, ...], score: float) -> None:
    assert points[0].strength <= response_factor(points, score) <= points[-1].strength


@given(curves())
def test_the_curve_goes_through_its_points(points: tuple[ResponsePoint, ...]) -> None:
    assert [response_factor(points, point.score) for point in points] == [point.strength for point in points]


def test_the_curve_is_linear_between_points_and_one_without_points() -> None:
    points = (ResponsePoint(score=0.5, strength=0.0), ResponsePoint(score=0.9, strength=2.0))
    assert response_factor(points, 0.7) == pytest.approx(1.0)
    assert (response_factor(points, 0.1), response_factor(points, 1.0)) == (0.0, 2.0)
    assert response_factor((), 0.3) == 1.0


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"pack": "Some Name"}, "pattern"),
        ({"pack": "0" * 65}, "pattern"),
        ({"strength": float("nan")}, "finite"),
        ({"strength": float("inf")}, "finite"),
        ({"strength": 100.5}, "less than or equal to 100"),
        ({"phase": "answer"}, "'prompt', 'generation' or 'both'"),
        ({"when": "always", "targets": {"Xavi": 1.0}}, "does not depend on a match"),
        ({"when": "always", "response": [{"score": 0.5, "strength": 1.0}]}, "does not depend on a match"),
        ({"response": [{"score": 0.5, "strength": 1.0}, {"score": 0.5, "strength": 1.0}]}, "must increase"),
        ({"response": [{"score": 0.5, "strength": 1.0}, {"score": 0.6, "strength": 0.5}]}, "must not decrease"),
        ({"response": [{"score": 1.5, "strength": 1.0}]}, "less than or equal to 1"),
        ({"response": [{"score": 0.5, "strength": -1.0}]}, "greater than or equal to 0"),
    ],
)
def test_an_edit_that_means_nothing_is_refused(edit: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        EditPolicy.model_validate({"pack": "a", **edit})


def test_a_token_has_room_for_four_unconditional_packs() -> None:
    always = [{"pack": f"pack-{number}", "when": "always"} for number in range(5)]
    assert len(Policy.model_validate({"edits": [*always[:4], always[0]]}).edits) == 5
    with pytest.raises(ValidationError, match="at most 4 packs"):
        Policy.model_validate({"edits": always})
    with pytest.raises(ValidationError, match="at most 16"):
        Policy.model_validate({"edits": [{"pack": "a"}] * 17})


@pytest.mark.parametrize(
    ("edit", "targets", "guarded"),
    [
        ({"when": "always"}, (), True),
        ({"when": "always", "strength": 0.0}, (), False),
        ({"when": "flagged"}, (), False),
        ({"when": "flagged"}, (Target(name="Xavi"),), True),
    ],
)
def test_an_edit_of_every_request_guards_a_tenant_without_a_list(
    edit: dict[str, Any], targets: tuple[Target, ...], guarded: bool
) -> None:
    policy = Policy.model_validate({"edits": [{"pack": "a", **edit}]})
    tenant = tenant_of(TenantSpec(name="acme", policy=policy, targets=targets), 1)
    assert (tenant.guarded, tenant.listed) == (guarded, bool(targets))


def test_a_policy_keeps_its_version_when_fields_are_added() -> None:
    spec = TenantSpec(name="acme", targets=(Target(name="Hina Ameen"),))
    assert tenant_of(spec, 1).policy_version == "8b13345729b7d542"
    edited = spec.model_copy(update={"policy": Policy.model_validate({"edits": [{"pack": "a"}]})})
    assert tenant_of(edited, 1).policy_version != tenant_of(spec, 1).policy_version
