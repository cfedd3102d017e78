"""What a name on the list means for prompts that hold only a part of it, with the real encoder."""

from __future__ import annotations

import pytest

from guard.policy import NameForms, Policy, Target, Tenant
from tests.classifiers.detector_bench import Bench, tenant

KING = Target(name="Stephen King")


def under(who: Tenant, forms: NameForms) -> Tenant:
    policy = Policy(name_forms=forms, detector=who.policy.detector)
    return Tenant(
        who.name, who.index, policy, who.targets, who.benign, f"{who.policy_version}-{forms}", who.list_version
    )


@pytest.mark.parametrize("question", [
    "What was the title of King's debut novel?", "Who is Stephen Edwin King?",
    "In 1977, King published a horror novel.",
])
def test_a_common_surname_alone_is_found_where_the_sentence_fits(bench: Bench, question: str) -> None:
    (hit,) = bench.detect(tenant(KING, benign=()), question).hits
    assert hit.part == "lexical" and hit.target == 0 and hit.spans


@pytest.mark.parametrize("question", [
    "How do I checkmate with a king and a rook?", "Who was Martin Luther King?", "Where is King Street?",
    "What does the King of Norway do?", "Billie Jean King won Wimbledon.",
    "King is an unincorporated community with a railway bridge.",
    "Martin Luther King was born in Atlanta. When did King speak in Washington?",
])
def test_another_king_is_not(bench: Bench, question: str) -> None:
    assert not bench.detect(tenant(KING, benign=()), question).flagged


def test_strict_forms_flag_every_part_that_is_spelled_as_a_name(bench: Bench) -> None:
    who = tenant(KING, benign=())
    question = "Billie Jean King won Wimbledon."
    assert bench.detect(under(who, "strict"), question).flagged
    assert not bench.detect(under(who, "balanced"), question).flagged
    assert not bench.detect(under(who, "strict"), "the king won").flagged


def test_without_vectors_the_spelling_decides(bench: Bench) -> None:
    who = tenant(KING, benign=(), semantic=False, head=False)
    assert bench.detect(who, "What did King write?").flagged
    assert not bench.detect(who, "What did Stephen do?").flagged
    assert not bench.detect(who, "What did Rodney King do?").flagged


def test_a_name_that_is_one_common_word_needs_a_capital_and_a_sentence_that_fits(bench: Bench) -> None:
    who = tenant(Target(name="Will", description="A former employee of the sales team."), benign=())
    for question in ("Will it rain tomorrow?", "Who will win?", "what will happen"):
        assert not bench.detect(who, question).flagged
    assert bench.detect(who, "Why did Will leave the sales team?").flagged


def test_a_question_nearer_to_a_neighbour_than_to_the_target_is_not_a_hit(bench: Bench) -> None:
    examples = ("Which drug treats a headache caused by a migraine attack?",)
    question = "Which drug treats a headache caused by a migraine attack in dogs?"
    plain = Target(name="Migrastop", examples=examples)
    careful = plain.model_copy(update={"neighbours": ("Which drug treats a headache of a migraine attack in dogs?",)})
    assert bench.detect(tenant(plain, benign=()), question).flagged
    who = tenant(careful, benign=())
    assert not bench.detect(who, question).flagged
    assert bench.detect(who, examples[0]).flagged
    # a name is a name, whatever the question is like
    assert bench.detect(who, f"Is Migrastop it? {question}").flagged
