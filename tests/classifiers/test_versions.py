"""What is kept of lists is bounded by versions and by tenants."""

from __future__ import annotations

from guard.classifiers.versions import KEPT_VERSIONS, Versions
from guard.policy import Policy, Tenant


def tenant(name: str, index: int = 1) -> Tenant:
    """A tenant without anything but a name."""
    return Tenant(name, index, Policy(), (), (), "", "")


def test_the_last_versions_of_a_tenant_are_kept() -> None:
    dropped: list[str] = []
    kept = Versions(dropped.append)
    for version in "abcd":
        kept.add(tenant("acme"), version, version)
    assert dropped == ["a"] and list(kept.newest_first(tenant("acme"))) == ["d", "c", "b"]
    assert kept.use(tenant("acme"), "b") == "b"
    assert list(kept.newest()) == [(1, "b")]
    assert KEPT_VERSIONS == 3


def test_the_tenant_that_was_not_used_for_longest_goes_first() -> None:
    dropped: list[str] = []
    kept = Versions(dropped.append, tenants=3)
    for name in "abc":
        kept.add(tenant(name), "1", name)
    assert kept.use(tenant("a"), "1") == "a" and kept.look(tenant("b"), "1") == "b"
    kept.add(tenant("d"), "1", "d")
    assert dropped == ["b"] and len(kept) == 3
    assert kept.use(tenant("b"), "1") is None


def test_only_named_tenants_stay() -> None:
    dropped: list[str] = []
    kept = Versions(dropped.append)
    kept.add(tenant("a", 4), "1", "a1")
    kept.add(tenant("a", 4), "2", "a2")
    kept.add(tenant("b", 5), "1", "b1")
    kept.keep_only({"b", "c"})
    assert dropped == ["a1", "a2"] and list(kept.newest()) == [(5, "b1")]
    assert list(kept.newest_first(tenant("a"))) == []


def test_a_tenant_made_anew_has_its_new_index() -> None:
    kept: Versions[str] = Versions(lambda _: None)
    kept.add(tenant("a", 4), "1", "a1")
    assert kept.use(tenant("a", 9), "1") == "a1"
    assert list(kept.newest()) == [(9, "a1")]
