"""From the edits of a policy and a verdict to lanes: pure, the same inputs give the same lanes in the same order.

Edits of every request come first, in the policy's order; then those that the verdict calls for, best score first.
A pack has one lane: where several entries ask for it, the strength of the largest magnitude holds, and entries with
different phases make it `both`. A strength of zero makes no lane.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    always = [_Wanted(edit, edit.strength, 1.0) for edit in tenant.policy.edits if edit.when == "always"]
    found = [_matched(edit, tenant, hits) for edit in tenant.policy.edits if edit.when == "flagged"]
    flagged = sorted((each for each in found if each is not None), key=lambda each: -each.score)
    lanes: dict[str, EditLane] = {}
    for each in (*always, *flagged):
        if each.strength:
            lane = EditLane(pack=each.edit.pack, strength=each.strength, phase=each.edit.phase)
            earlier = lanes.get(lane.pack)
            lanes[lane.pack] = lane if earlier is None else _joined(earlier, lane)
    return tuple(lanes.values())


def _matched(edit: EditPolicy, tenant: Tenant, hits: Sequence[TargetHit]) -> _Wanted | None:
    names = {hit: tenant.targets[hit.target].name for hit in hits}
    own = [hit for hit in hits if not edit.targets or names[hit] in edit.targets]
    if not own:
        return None
    factor = max((edit.targets.get(names[hit], 1.0) for hit in own), key=_magnitude)
    score = max(hit.score for hit in own)
    strength = edit.strength * factor * response_factor(edit.response, score)
    return _Wanted(edit, min(max(strength, -MAX_STRENGTH), MAX_STRENGTH), score)


def _joined(first: EditLane, second: EditLane) -> EditLane:
    stronger = max(first, second, key=lambda lane: _magnitude(lane.strength))
    return stronger if first.phase == second.phase else stronger.model_copy(update={"phase": "both"})


def _magnitude(strength: float) -> tuple[float, float]:
    return abs(strength), strength
