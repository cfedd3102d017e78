"""From the edits of a policy and a verdict to lanes: pure, the same inputs give the same lanes in the same order.

Edits of every request come first, in the policy's order; then those that the verdict calls for, best score first.
A pack has one lane: where several entries ask for it, the strength of the largest magnitude holds, and entries with
different phases make it `both`. A strength of zero makes no lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard.edit_policy import EditPolicy, response_factor
from guard.plan import MAX_STRENGTH, EditLane
from guard.policy import Tenant
from guard.verdict import TargetHit


@dataclass(frozen=True, slots=True)
class _Wanted:
    edit: EditPolicy
    strength: float
    score: float


def edit_lanes(tenant: Tenant, hits: Sequence[TargetHit] = ()) -> tuple[EditLane, ...]:
    """Lanes of a prompt that touches `hits`; without hits only the edits of every request. May be more than fit."""
    edits = tenant.policy.edits
    if not edits:
        return ()
    scores: dict[str, float] = {}
    for hit in hits:
        name = tenant.targets[hit.target].name
        scores[name] = max(hit.score, scores.get(name, 0.0))
    best = max(scores.values(), default=0.0)
    always = [_Wanted(edit, edit.strength, 1.0) for edit in edits if edit.when == "always"]
    found = [_matched(edit, scores, best) for edit in edits if edit.when == "flagged"]
    flagged = sorted((each for each in found if each is not None), key=lambda each: -each.score)
    lanes: dict[str, EditLane] = {}
    for each in (*always, *flagged):
        if each.strength:
            lane = EditLane(pack=each.edit.pack, strength=each.strength, phase=each.edit.phase)
            earlier = lanes.get(lane.pack)
            lanes[lane.pack] = lane if earlier is None else _joined(earlier, lane)
    return tuple(lanes.values())


def _matched(edit: EditPolicy, scores: Mapping[str, float], best: float) -> _Wanted | None:
    """`scores`: best score of each touched target by name; `best` of them all."""
    factor, score = 1.0, best
    if edit.targets:
        own = [name for name in edit.targets if name in scores]
        factor = max((edit.targets[name] for name in own), key=_magnitude, default=0.0)
        score = max((scores[name] for name in own), default=0.0)
    if not scores or not factor:
        return None
    strength = edit.strength * factor * response_factor(edit.response, score)
    return _Wanted(edit, min(max(strength, -MAX_STRENGTH), MAX_STRENGTH), score)


def _joined(first: EditLane, second: EditLane) -> EditLane:
    stronger = max(first, second, key=lambda lane: _magnitude(lane.strength))
    return stronger if first.phase == second.phase else stronger.model_copy(update={"phase": "both"})


def _magnitude(strength: float) -> tuple[float, float]:
    return abs(strength), strength
