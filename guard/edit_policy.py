"""Which activation edits a tenant's requests carry, and how strongly: one entry of `policy.edits`.

The strength of a lane is `strength` x `targets` factor x response(score). The response is a monotone curve, linear
between its points and level outside them, so that a prompt that touches a target more clearly is never edited less.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from guard.plan import MAX_LANES, MAX_STRENGTH, Phase

When = Literal["flagged", "always"]
MAX_POINTS = 32
PackReference = Annotated[str, StringConstraints(pattern=r"^(?:[a-z0-9][a-z0-9_-]{0,62}|[0-9a-f]{64})$")]
Strength = Annotated[float, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH, allow_inf_nan=False)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ResponsePoint(_Schema):
    """One point of a response curve."""

    score: Annotated[float, Field(ge=0.0, le=1.0, description="Detector score; 0.5 is the threshold of a match.")]
    strength: Annotated[
        float, Field(ge=0.0, le=MAX_STRENGTH, allow_inf_nan=False, description="Factor of the strength at this score.")
    ]


class EditPolicy(_Schema):
    """One activation edit of a tenant's requests."""

    pack: Annotated[
        PackReference,
        Field(description="Name of a pack in the store (`guard pack add`), or its content hash. The stored policy "
                          "keeps the hash: a name that moves to another pack changes nothing until the next apply."),
    ]
    strength: Annotated[Strength, Field(description="Factor of the whole edit; 0 for none, below 0 to reverse it.")] = (
        1.0
    )
    phase: Annotated[
        Phase, Field(description="Tokens that are edited: those of the `prompt`, of the `generation`, or `both`.")
    ] = "both"
    when: Annotated[
        When,
        Field(description="`flagged`: on prompts that touch a target; `always`: on every request of the tenant."),
    ] = "flagged"
    targets: Annotated[
        dict[Annotated[str, StringConstraints(min_length=1, max_length=4096)], Strength],
        Field(max_length=100_000,
              description="Names of targets and a factor of the strength for each: the edit applies to prompts that "
                          "touch one of them. Empty: any target. Of several touched targets the largest factor holds."),
    ] = {}
    response: Annotated[
        tuple[ResponsePoint, ...],
        Field(max_length=MAX_POINTS,
              description="Curve from the best score of the touched targets to a factor of the strength: scores "
                          "increase, strengths never decrease. Linear in between, level at the ends; empty: factor 1."),
    ] = ()

    @field_validator("response")
    @classmethod
    def _monotone(cls, points: tuple[ResponsePoint, ...]) -> tuple[ResponsePoint, ...]:
        for before, after in pairwise(points):
            if after.score <= before.score:
                raise ValueError("the scores of the points must increase")
            if after.strength < before.strength:
                raise ValueError("the strengths of the points must not decrease")
        return points

    @model_validator(mode="after")
    def _unconditional(self) -> EditPolicy:
        if self.when == "always" and (self.targets or self.response):
            raise ValueError("`when: always` does not depend on a match: leave out `targets` and `response`")
        return self


def check_always(edits: Iterable[EditPolicy]) -> None:
    """Raises ValueError when a request without any match would already need more lanes than there are."""
    packs = {edit.pack for edit in edits if edit.when == "always" and edit.strength}
    if len(packs) > MAX_LANES:
        raise ValueError(f"at most {MAX_LANES} packs can have `when: always`, because a token has {MAX_LANES} lanes")


def response_factor(points: Sequence[ResponsePoint], score: float) -> float:
    """The curve at `score`: piecewise linear, level outside the points, 1 without points."""
    if not points:
        return 1.0
    if score <= points[0].score:
        return points[0].strength
    for before, after in pairwise(points):
        if score == after.score:
            return after.strength
        if score < after.score:
            share = (score - before.score) / (after.score - before.score)
            factor = before.strength + share * (after.strength - before.strength)
            # rounding must not leave the range of the two points
            return min(max(factor, before.strength), after.strength)
    return points[-1].strength
