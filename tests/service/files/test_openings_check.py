"""Wordings that a tenant's own list forbids are refused, with their place in the file."""

from __future__ import annotations

from guard.policy import AnswerPolicy, Opening, Policy, Target, TenantSpec
from guard.service.files.openings_check import opening_problems


def tenant(*wordings: str) -> TenantSpec:
    openings = tuple(Opening(language="en", text=wording) for wording in wordings)
    target = Target(name="Ada Example", forbid=("Ada Example", "Northern Lights"))
    return TenantSpec(name="acme", policy=Policy(answer=AnswerPolicy(openings=openings)), targets=(target,))


def test_a_wording_with_a_forbidden_string_is_refused_at_its_place() -> None:
    problems = list(opening_problems(tenant("I know nothing of", "As ADA-Example says,"), ("tenants", 0)))
    assert [place for place, _ in problems] == [("tenants", 0, "policy", "answer", "openings", 1, "text")]
    assert "forbids" in problems[0][1] and "ada" not in problems[0][1].lower()


def test_a_wording_without_letters_is_refused() -> None:
    (problem,) = opening_problems(tenant("..."), ("tenants", 3))
    assert problem[0][:2] == ("tenants", 3) and "letters" in problem[1]


def test_other_wordings_pass() -> None:
    assert list(opening_problems(tenant("I never heard of", "Nobody told me about"), ("tenants", 0))) == []
    assert list(opening_problems(tenant(), ("tenants", 0))) == []
