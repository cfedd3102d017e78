"""A dossier from documents: questions about headings, names and sentences, key phrases, and the texts themselves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from guard.classifiers.normalize import SEPARATOR, mask_form
from guard.classifiers.phrases import key_phrases
from guard.classifiers.verbatim import verbatim_runs
from guard.policy import Kind
from guard.service.dossier.documents import Document
from guard.service.dossier.dossier import Dossier, Row, sorted_rows
from guard.service.dossier.from_model import forbiddable

MAX_HEADINGS = 12
MAX_PHRASES = 40
ASKED_PHRASES = 12
MAX_SENTENCES = 12
# how often a document must say a phrase that is to be forbidden
MENTIONS = 2
OPENING_WORDS = 8
# characters of a heading or the beginning of a sentence
MAX_LENGTH = 200
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n{2,}")
_SENTENCE_WORDS = (10, 60)
_SCANNED = 400_000


def dossier_from_documents(
    name: str, kind: Kind, documents: Sequence[Document], verbatim_words: int = 8
) -> Dossier:
    """Examples, key phrases and protected texts of `documents`, about the target `name`."""
    rows = sorted_rows(row for document in documents for row in _rows(name, document, verbatim_words))
    return Dossier(name, kind, rows, verbatim_words=verbatim_words)


def _rows(name: str, document: Document, words: int) -> Iterator[Row]:
    phrases = _key_phrases(name, document.text[:_SCANNED])
    for phrase, count in phrases:
        yield Row("forbid", phrase, f"{count} times in {document.name}")
    own = mask_form(name)
    headings = [each for each in document.headings if len(each) <= MAX_LENGTH and mask_form(each) not in ("", own)]
    for heading in headings[:MAX_HEADINGS]:
        yield Row("examples", f"What does {name} say about {heading}?", f"heading in {document.name}")
    for phrase, _ in phrases[:ASKED_PHRASES]:
        yield Row("examples", f"Who or what is {phrase} in {name}?", f"name in {document.name}")
    for opening in _openings(document.text):
        yield Row("examples", f"How does this go on: \"{opening}\"", f"sentence in {document.name}")
    if next(verbatim_runs(document.text, words), None) is not None:
        count = len(document.text.split())
        yield Row("verbatim", document.text, f"no run of {words} words", f"{document.name}: {count:,} words")


def _key_phrases(name: str, text: str) -> list[tuple[str, int]]:
    """Names and titles that the text says more than once, the most frequent first."""
    own = set(mask_form(name).split(SEPARATOR))
    written: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for phrase in key_phrases(text):
        form = mask_form(phrase)
        written.setdefault(form, phrase)
        counts[form] += 1
    return [
        (written[form], count) for form, count in counts.most_common()
        if count >= MENTIONS and forbiddable(written[form]) and not set(form.split(SEPARATOR)) <= own
    ][:MAX_PHRASES]


def _openings(text: str) -> list[str]:
    """The first words of sentences, spread evenly over the text."""
    low, high = _SENTENCE_WORDS
    sentences = [sentence.split() for sentence in _SENTENCE.split(text)]
    fitting = [words for words in sentences if low <= len(words) <= high]
    step = max(1, len(fitting) // MAX_SENTENCES)
    openings = [" ".join(words[:OPENING_WORDS]) for words in fitting[::step]]
    return [opening for opening in openings if len(opening) <= MAX_LENGTH and mask_form(opening)][:MAX_SENTENCES]
