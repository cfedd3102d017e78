"""Every problem of a tenant file names its line and field and repeats nothing of what the file holds."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import TenantFileError
from guard.policy import TenantFile
from guard.service.files.schema import known_keys, schema_text, tenant_file_schema
from guard.service.files.tenant_file import examine, load_tenant_file, parse_tenant_file

GOOD = """\
# a comment
version: 1
tenants:
  - name: acme
    policy:
      action: refuse
      detector: {alpha: 0.05}
    targets:
      - name: Hina Ameen
        aliases: [H. Ameen, '李四']
        examples:
          - Where was Hina Ameen born?
        answers: ["Granite: a glossary"]
        forbid: [Shale Stories]
      - name: no
        aliases: []
"""


def problem_of(text: str) -> TenantFileError:
    with pytest.raises(TenantFileError) as caught:
        parse_tenant_file(text)
    return caught.value


def with_target(lines: str) -> str:
    return f"version: 1\ntenants:\n  - name: acme\n    targets:\n{lines}"


def test_a_good_file_is_read_whole() -> None:
    file = parse_tenant_file(GOOD.replace("name: no", "name: Nobel"))
    (tenant,) = file.tenants
    assert tenant.policy.action == "refuse"
    assert tenant.policy.detector.alpha == 0.05
    assert tenant.targets[0].aliases == ("H. Ameen", "李四")
    assert tenant.targets[0].forbid == ("Shale Stories",)
    assert tenant.targets[1].forbid is None


def test_no_is_text_and_a_stop_word() -> None:
    error = problem_of(GOOD)
    assert (error.line, error.field) == (15, "tenants[0].targets[1].name")
    assert "stop words" in str(error)


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("version: 1\ntenants:\n  - name: acme\n    policy:\n      acton: forget\n", 5, "tenants[0].policy.acton"),
        ("version: 1\ntenants:\n  - name: Acme\n", 3, "tenants[0].name"),
        ("version: 1\ntenants:\n  - policy: {}\n", 3, "tenants[0].name"),
        ("version: 2\ntenants:\n  - name: acme\n", 1, "version"),
        ("version: 1\n", 1, "tenants"),
        ("version: 1\ntenants: []\n", 2, "tenants"),
        ("version: 1\ntenants:\n  - name: a\n    policy:\n      action: erase\n", 5, "tenants[0].policy.action"),
        ("version: 1\ntenants:\n  - name: a\n    policy: {max_choices: 'four'}\n", 4, "tenants[0].policy.max_choices"),
        ("version: 1\ntenants:\n  - name: a\n    policy: {max_choices: 0}\n", 4, "tenants[0].policy.max_choices"),
        ("version: 1\ntenants:\n  - name: a\n    policy: {max_choices: 9}\n", 4, "tenants[0].policy.max_choices"),
        ("version: 1\ntenants:\n  - name: a\n    name: b\n", 4, "tenants[0].name"),
        ("version: 1\ntenants:\n  - name: a\n  - name: b\n  - name: a\n", 5, "tenants[2].name"),
        ("version: 1\ntenants:\n  - name: a\n    benign: [fine, ' ']\n", 4, "tenants[0].benign[1]"),
        ("version: 1\ntenants: &x\n  - *x\n", 3, "tenants[0]"),
        ("version: 1\ntenants:\n  - name: *x\n", 3, "tenants[0].name"),
        ("version: 1\ntenants:\n  - name: !!python/name:os.system a\n", 3, "tenants[0].name"),
        (with_target("      - name: 1984\n"), 5, "tenants[0].targets[0].name"),
        (with_target("      - {}\n"), 5, "tenants[0].targets[0].name"),
        (with_target("      - name: ''\n"), 5, "tenants[0].targets[0].name"),
        (with_target("      - name: Hina Ameen\n        forbid: ['x-y']\n"), 6, "tenants[0].targets[0].forbid[0]"),
    ],
)
def test_a_problem_names_line_and_field(text: str, line: int, field: str) -> None:
    error = problem_of(text)
    assert (error.line, error.field) == (line, field)
    assert str(error).startswith(f"line {line}: {field}: ")


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\t- x", "{", "'", "tenants:\n  - name: x\n - y"])
def test_malformed_yaml_names_a_line(text: str) -> None:
    assert problem_of(text).line >= 1


def test_malformed_yaml_names_the_field_it_stopped_at() -> None:
    error = problem_of("version: 1\ntenants:\n  - name: acme\n    targets: [\n")
    assert error.field.startswith("tenants[0].targets")


@pytest.mark.parametrize(
    "word",
    ["the", "THE", "of the", "a", "x", "-", " ", "\u200b", "\u200bthe\u200b", "\uff54\uff48\uff45", "...", "A. B."],
)
@pytest.mark.parametrize("key", ["name", "aliases", "forbid"])
def test_entries_that_match_ordinary_speech_are_refused_without_being_repeated(word: str, key: str) -> None:
    target: dict[str, object] = {"name": "Hina Ameen"}
    target[key] = word if key == "name" else ["Granite", word]
    error = problem_of(json.dumps({"tenants": [{"name": "acme", "targets": [target]}]}))
    assert error.field == f"tenants[0].targets[0].{key}" + ("" if key == "name" else "[1]")
    assert f" {word} " not in str(error).replace(error.field, "")


@pytest.mark.parametrize(
    ("text", "fits"), [("abc", False), ("abcd", True), ("a.b.c", False), ("q" * 512, True), ("q" * 513, False)]
)
def test_forbidden_strings_have_4_to_512_normal_characters(text: str, fits: bool) -> None:
    file = {"tenants": [{"name": "acme", "targets": [{"name": "Hina Ameen", "forbid": [text]}]}]}
    assert (examine(json.dumps(file))[0] is not None) == fits


def test_an_unknown_key_suggests_the_nearest_known_one() -> None:
    assert "did you mean `targets`?" in str(problem_of("tenants:\n  - name: a\n    target: []\n"))


def test_all_problems_are_found_in_the_order_of_lines() -> None:
    _, problems = examine(with_target("      - name: the\n      - name: a\n        forbid: [no]\n"))
    assert [(problem.line, problem.field.rsplit(".", 1)[1]) for problem in problems] == [
        (5, "name"), (6, "name"), (7, "forbid[0]"),
    ]


def test_schema_problems_do_not_repeat_values() -> None:
    secret = "Hina Ameen's secret"
    tenant = {"name": secret, "policy": secret, "targets": [{"name": [secret]}]}
    _, problems = examine(json.dumps({"tenants": [tenant]}))
    assert len(problems) == 3
    assert secret not in repr(problems)


def test_deep_nesting_is_refused_not_followed() -> None:
    assert "nested" in str(problem_of("[" * 100_000))


def test_an_alias_repeats_what_its_anchor_holds_and_its_problems_name_the_alias() -> None:
    text = "tenants:\n  - name: a\n    benign: &b [Fine prompt]\n  - name: b\n    benign: *b\n"
    assert [tenant.benign for tenant in parse_tenant_file(text).tenants] == [("Fine prompt",)] * 2
    error = problem_of(text.replace("benign: *b", "policy: *b"))
    assert (error.line, error.field) == (5, "tenants[1].policy")


def test_aliases_that_blow_a_file_up_are_refused() -> None:
    levels = ["a0: &a0 [" + "x" * 1000 + "]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "too large" in str(problem_of("\n".join(levels)))
    deep = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 2000)]
    assert "nested deeper" in str(problem_of("\n".join(deep)))


def test_numbers_out_of_range_are_refused() -> None:
    for value in (".nan", ".inf", "1e999", "9" * 400, "-1"):
        problem_of(f"tenants:\n  - name: a\n    policy: {{detector: {{alpha: {value}}}}}\n")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(TenantFileError, match="cannot be read"):
        load_tenant_file(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"version: 1\n# caf\xe9\n")
    with pytest.raises(TenantFileError, match="line 2: the file is not UTF-8"):
        load_tenant_file(tmp_path / "latin.yaml")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="ab:-[]{}'\"&*!|>#%?, \n\t0.\ufeff\ud800", max_size=80))
def test_any_text_gives_a_file_or_a_tenant_file_error(text: str) -> None:
    try:
        parse_tenant_file(text)
    except TenantFileError as error:
        assert 0 <= error.line <= text.count("\n") + text.count("\r") + text.count("\x85") + 3


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["version", "tenants", "name", "targets", "policy", "forbid", "x"]), inner),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(_VALUES)
def test_any_value_gives_a_file_or_problems_with_places(value: object) -> None:
    file, problems = examine(yaml.safe_dump(value, allow_unicode=True))
    assert (file is None) == bool(problems)
    assert all(problem.line >= 1 for problem in problems)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30))
def test_the_line_is_right_wherever_the_problem_stands(before: int, comments: int) -> None:
    lines = ["version: 1", "tenants:", "  - name: acme", "    targets:"]
    for number in range(before):
        lines += [f"      - name: Person Number{number}", "        description: |", "          two", "          lines"]
    lines += ["# comment"] * comments
    lines += ["      - name: Hina Ameen", "        aliases:", "          - Fine One", "          - the"]
    error = problem_of("\n".join(lines))
    assert (error.line, error.field) == (len(lines), f"tenants[0].targets[{before}].aliases[1]")


def test_the_published_schema_is_valid_and_accepts_what_we_accept() -> None:
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(GOOD.replace("name: no", "name: Nobel")), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"tenants": [{"name": "a", "extra": 1}]}, schema)


def test_every_field_of_the_schema_is_described_and_known() -> None:
    definitions = tenant_file_schema()["$defs"].values()
    fields = [(name, field) for definition in definitions for name, field in definition.get("properties", {}).items()]
    assert len(fields) > 30
    # a section of its own is described by what it is made of
    assert [name for name, field in fields if not field.get("description") and "$ref" not in str(field)] == []
    assert known_keys(()) == tuple(TenantFile.model_fields)
    assert "action" in known_keys(("tenants", 0, "policy"))
    assert tenant_file_schema()["additionalProperties"] is False


def with_edit(lines: str) -> str:
    text = "version: 1\ntenants:\n  - name: acme\n    targets: [{name: Hina Ameen}]\n    policy:\n      edits:\n"
    return f"{text}        - pack: calm\n{lines}"


@pytest.mark.parametrize(
    ("lines", "line", "field", "message"),
    [
        ("          targets: {Hina Amen: 1}\n", 8, "targets.Hina Amen…", "no target of this tenant has this name"),
        ("          when: always\n          response: [{score: 0, strength: 1}]\n", 7, "", "leave out `targets`"),
        ("          response:\n            - {score: 0.5, strength: 1}\n            - {score: 0.4, strength: 1}\n", 8,
         "response", "scores of the points must increase"),
        ("          strength: .inf\n", 8, "strength", ""),
        ("          strenght: 1\n", 8, "strenght", "did you mean `strength`?"),
        ("          response: [{score: 0.5, strngth: 1}]\n", 8, "response[0].strngth", "did you mean `strength`?"),
    ],
)
def test_a_wrong_edit_is_told_with_line_and_field(lines: str, line: int, field: str, message: str) -> None:
    problems = examine(with_edit(lines))[1]
    error = next(problem for problem in problems if message in problem.message)
    base = "tenants[0].policy.edits[0]"
    assert (error.line, error.field) == (line, f"{base}.{field}" if field else base)
    assert "Value error" not in error.message


def test_an_edit_may_name_targets_of_its_tenant() -> None:
    (tenant,) = parse_tenant_file(with_edit("          targets: {Hina Ameen: -0.5}\n")).tenants
    assert tenant.policy.edits[0].targets == {"Hina Ameen": -0.5}


@pytest.mark.parametrize(
    ("name", "accepted"), [("Will", True), ("May", True), ("will", False), ("I", False), ("The", False)]
)
def test_a_stop_word_may_be_a_name_where_a_capital_letter_says_so(name: str, accepted: bool) -> None:
    file, problems = examine(f"version: 1\ntenants:\n  - name: acme\n    targets:\n      - name: {name}\n")
    assert (file is not None) == accepted == (not problems)
