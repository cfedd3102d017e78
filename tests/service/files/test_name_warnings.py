"""Names that are accepted with a warning."""

from __future__ import annotations

import pytest

from guard.service.files.name_warnings import name_warnings
from guard.service.files.tenant_file import parse_tenant_file


def warned(target: str, policy: str = "{}") -> list[tuple[int, str, str]]:
    text = f"version: 1\ntenants:\n  - name: acme\n    policy: {policy}\n    targets:\n      - {target}\n"
    return [(each.line, each.field, each.message) for each in name_warnings(parse_tenant_file(text), text)]


@pytest.mark.parametrize("name", ["Apple", "Paris", "King"])
def test_one_common_word_is_accepted_with_its_line_and_what_it_costs(name: str) -> None:
    ((line, field, message),) = warned(f"{{name: {name}}}")
    assert (line, field) == (6, "tenants[0].targets[0].name")
    assert "one common word" in message and "where the sentence fits" in message and name not in message


def test_the_cost_is_that_of_the_policy() -> None:
    ((_, _, message),) = warned("{name: Paris}", "{name_forms: strict}")
    assert "every prompt" in message


def test_a_common_alias_is_named_by_its_place() -> None:
    ((_, field, _),) = warned("{name: Stephen Edwin King, aliases: [Steve King, King]}")
    assert field == "tenants[0].targets[0].aliases[1]"


@pytest.mark.parametrize("target", [
    "{name: Paris, kind: place}", "{name: Paris, description: The capital of France}", "{name: Paris Hilton}",
    "{name: Rihanna}", "{name: synthesis of nerve agents}", "{name: bomb making, kind: topic}",
])
def test_context_or_a_longer_name_needs_no_warning(target: str) -> None:
    assert warned(target) == []


def test_a_name_written_small_may_be_taken_for_a_topic() -> None:
    ((_, _, message),) = warned("{name: stephen king}")
    assert "topic" in message
    assert warned("{name: stephen king}", "{forbid_name: never}") == []


def test_a_long_list_gets_few_warnings() -> None:
    text = "version: 1\ntenants:\n  - name: acme\n    targets:\n" + "      - name: Paris\n" * 500
    assert len(name_warnings(parse_tenant_file(text), text)) == 20
