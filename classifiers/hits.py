"""From what the parts of the detector found to one verdict."""

from __future__ import annotations

from collections.abc import Iterable

from guard.classifiers.lexical import Doubt, LexicalMatcher, merge_spans
from guard.verdict import NOTHING, Span, TargetHit, Verdict


def with_doubts(hits: dict[int, TargetHit], fitting: Iterable[Doubt]) -> dict[int, TargetHit]:
    """`hits` with the targets whose name is one of the doubtful parts that fit."""
    joined = dict(hits)
    for doubt in fitting:
        known = joined.get(doubt.target)
        spans = (*known.spans, doubt.mention.span) if known is not None else (doubt.mention.span,)
        joined[doubt.target] = TargetHit(doubt.target, 1.0, "lexical", spans)
    return joined


def verdict_of(hits: dict[int, TargetHit], lexical: LexicalMatcher, text: str) -> Verdict:
    """Best hits first; their spans joined with single words of their names, which betray the target as well."""
    if not hits:
        return NOTHING
    parts = lexical.parts(text, hits)
    complete = []
    for number, hit in hits.items():
        spans: list[Span] = [*hit.spans, *parts.get(number, ())]
        complete.append(TargetHit(number, hit.score, hit.part, merge_spans(spans)))
    return Verdict(tuple(sorted(complete, key=lambda hit: (-hit.score, hit.target))))
