"""Wordings of a tenant that its own list forbids: an answer that must begin with one could say nothing.

A shipped wording that a list forbids is left out by the server instead (`guard.classifiers.openings.contradictions`):
only what a person wrote is worth an error.
"""

from __future__ import annotations

from collections.abc import Iterator

from guard.classifiers.normalize import mask_form
from guard.classifiers.openings import contradictions
from guard.classifiers.phrases import forbidden_patterns
from guard.policy import TenantSpec, tenant_of
from guard.service.files.yaml_positions import Path as FieldPath


def opening_problems(tenant: TenantSpec, base: FieldPath) -> Iterator[tuple[FieldPath, str]]:
    """Place and message of every wording in `policy.answer.openings` that cannot be used.

    `base` is the tenant's place in its file. Messages repeat neither the wording nor the forbidden string.
    """
    openings = tenant.policy.answer.openings
    if not openings:
        return
    patterns = [pattern.text for pattern in forbidden_patterns(tenant_of(tenant, 0))]
    refused = set(contradictions([opening.text for opening in openings], patterns))
    for index, opening in enumerate(openings):
        place = (*base, "policy", "answer", "openings", index, "text")
        if not mask_form(opening.text):
            yield place, "must hold letters"
        elif opening.text in refused:
            yield place, "contains a string that this tenant's list forbids: write it without that string"
