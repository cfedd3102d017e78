"""A target joins a list: the others, the policy and the benign prompts stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import TenantFileError
from guard.policy import Policy, Target, Tenant, TenantSpec, tenant_of
from guard.service.dossier.publishing import file_name, merged, valid_file
from guard.service.files.tenant_file import parse_tenant_file

OTHERS = (Target(name="Hina Ameen"), Target(name="Standard Oil", aliases=("Esso",)))


def tenant(*targets: Target) -> Tenant:
    spec = TenantSpec(name="acme", policy=Policy(action="refuse"), targets=targets, benign=("How are you?",))
    return tenant_of(spec, 3)


def test_a_new_target_comes_last_and_the_rest_stays() -> None:
    spec, replaced = merged(tenant(*OTHERS), Target(name="Carrie"))
    assert not replaced
    assert [target.name for target in spec.targets] == ["Hina Ameen", "Standard Oil", "Carrie"]
    assert (spec.policy.action, spec.benign) == ("refuse", ("How are you?",))


def test_a_target_of_the_same_name_is_replaced_in_its_place() -> None:
    new = Target(name="hina  ámeen", examples=("Who is Hina Ameen?",))
    spec, replaced = merged(tenant(*OTHERS, Target(name="Hina Ameen", kind="person")), new)
    assert replaced
    assert spec.targets == (new, OTHERS[1])


def test_the_file_holds_the_target() -> None:
    target = Target(name="Carrie", kind="work", forbid=("Chamberlain: High",), answers=("It's by \"S. King\"\n# not",))
    (read,) = parse_tenant_file(valid_file("acme", target)).tenants
    assert (read.name, read.targets) == ("acme", (target,))


def test_a_name_that_a_tenant_file_may_not_hold_is_refused() -> None:
    with pytest.raises(TenantFileError, match="ordinary speech"):
        valid_file("acme", Target(name="the"))


@given(st.text(min_size=1, max_size=60), st.lists(st.text(min_size=1, max_size=60), max_size=3))
def test_any_target_is_written_and_read_back_or_refused(name: str, answers: list[str]) -> None:
    target = Target(name=name, answers=tuple(answers))
    try:
        text = valid_file("acme", target)
    except TenantFileError:
        return
    assert parse_tenant_file(text).tenants[0].targets == (target,)


@given(st.text(max_size=200))
def test_file_names_are_plain(name: str) -> None:
    made = file_name(name)
    assert made.endswith(".yaml") and "/" not in made and not made.startswith((".", "-")) and len(made) <= 200


def test_file_names_tell_the_name() -> None:
    assert file_name("John D. Rockefeller") == "john-d-rockefeller.yaml"
    assert file_name("../..") == "dossier.yaml"
