"""Names that are accepted and cost something: one common word, or a phrase that may be a name written small."""

from __future__ import annotations

from collections.abc import Iterator

from guard.classifiers.name_forms import common_name
from guard.classifiers.name_words import SMALL_WORDS
from guard.classifiers.normalize import mask_form
from guard.classifiers.target_kinds import kind_of
from guard.policy import Policy, Target, TenantFile
from guard.service.files.tenant_file import MAX_PROBLEMS, Problem
from guard.service.files.yaml_positions import Path as FieldPath
from guard.service.files.yaml_positions import parse_yaml, path_text

_ADVICE = "give a kind, a description or a longer name"
_LONGEST_NAME_WORDS = 3


def name_warnings(file: TenantFile, text: str) -> tuple[Problem, ...]:
    """What to tell the operator of `file`, whose YAML is `text`: at most 20 warnings, in order, without values."""
    found: list[tuple[FieldPath, str]] = []
    for number, tenant in enumerate(file.tenants):
        for index, target in enumerate(tenant.targets):
            base: FieldPath = ("tenants", number, "targets", index)
            found += ((base + path, message) for path, message in _of_target(target, tenant.policy))
            if len(found) >= MAX_PROBLEMS:
                break
    if not found:
        return ()
    document = parse_yaml(text)
    return tuple(Problem(message, document.line_of(path), path_text(path)) for path, message in found[:MAX_PROBLEMS])


def _of_target(target: Target, policy: Policy) -> Iterator[tuple[FieldPath, str]]:
    if target.kind is not None or target.description:
        return
    for path, name in ((("name",), target.name), *((("aliases", i), alias) for i, alias in enumerate(target.aliases))):
        if common_name(name):
            yield path, _common(policy)
    if _written_small(target) and (target.forbid_name or policy.forbid_name) != "never":
        yield ("name",), (
            "is taken for a topic, because it is written small: found by meaning, and answers may contain it; "
            "write it with capitals if it is a name, or `kind: topic`"
        )


def _common(policy: Policy) -> str:
    if policy.name_forms == "strict":
        return f"is one common word: every prompt that has it with a capital letter is flagged; {_ADVICE}"
    return f"is one common word: it flags a prompt only with a capital letter and where the sentence fits; {_ADVICE}"


def _written_small(target: Target) -> bool:
    """Whether a target that is taken for a topic could be the name of a person, place or work without capitals."""
    words = mask_form(target.name).split()
    return (
        kind_of(target) == "topic" and target.name == target.name.lower() and not target.examples
        and len(words) <= _LONGEST_NAME_WORDS and not SMALL_WORDS.intersection(words)
    )
