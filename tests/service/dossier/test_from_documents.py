"""A dossier from documents: names that they repeat, questions about them, and the texts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guard.policy import Tenant, TenantSpec, tenant_of
from guard.service.dossier.documents import Document
from guard.service.dossier.from_documents import dossier_from_documents
from guard.service.dossier.publishing import valid_file

TEXT = (
    "The old lighthouse stood above Karsholm harbour, and nobody had climbed its stairs for many years. "
    "Only Mirelda Ostrander kept the key, because she had promised it to the last keeper. "
    "When the storm came, the people of Karsholm looked for Mirelda Ostrander in every house. "
)


def test_repeated_names_are_forbidden_and_asked_about() -> None:
    dossier = dossier_from_documents("The Lamp of Karsholm", "work", [Document("book.txt", TEXT)])
    assert dossier.of("forbid") == ("Mirelda Ostrander",)
    assert "Who or what is Mirelda Ostrander in The Lamp of Karsholm?" in dossier.of("examples")
    assert 'How does this go on: "The old lighthouse stood above Karsholm harbour, and"' in dossier.of("examples")


def test_headings_are_asked_about() -> None:
    dossier = dossier_from_documents("Report", "text", [Document("a.md", TEXT, ("REPORT", "The Storm", "After it"))])
    asked = dossier.of("examples")[:2]
    assert asked == ("What does Report say about The Storm?", "What does Report say about After it?")


def test_the_text_is_protected_with_the_given_length_of_runs() -> None:
    dossier = dossier_from_documents("Report", "text", [Document("a.txt", TEXT), Document("b.txt", TEXT)], 5)
    target = dossier.target()
    assert (target.verbatim, target.verbatim_words) == ((TEXT,), 5)
    (row,) = [row for row in dossier.rows if row.field == "verbatim"]
    assert row.shown == f"a.txt: {len(TEXT.split())} words"


def test_a_text_too_short_for_a_run_is_not_protected() -> None:
    assert dossier_from_documents("Report", "text", [Document("a.txt", "Two words")]).rows == ()


def test_a_tenant_can_have_the_target() -> None:
    target = dossier_from_documents("Report", "text", [Document("a.txt", TEXT)]).target()
    tenant: Tenant = tenant_of(TenantSpec(name="acme", targets=(target,)), 1)
    assert tenant.listed


@given(st.text(min_size=1, max_size=400), st.lists(st.text(max_size=300), max_size=3), st.sampled_from("xÄ文 "))
def test_any_document_gives_a_valid_target(text: str, headings: list[str], filler: str) -> None:
    document = Document("a.md", f"{text} {filler * 5000} {text}", tuple(headings))
    assert valid_file("acme", dossier_from_documents("Report", "text", [document]).target())
