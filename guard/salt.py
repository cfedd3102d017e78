"""Which part of a plan the values in the prefix cache depend on."""

from __future__ import annotations

from guard.plan import Constraint, Plan


def salt_plan(plan: Plan) -> Plan:
    """The part of a plan that cached blocks depend on: not the prompt's length, nor what only chooses tokens.

    Without this, two turns of one conversation would never share a block. Only edits of one phase depend on where the
    answer begins: their next turn reads tokens as a prompt that were edited as an answer.
    """
    constraint = plan.constraint
    if constraint is not None:
        constraint = Constraint(digest=constraint.digest, start=0)
    phased = any(edit.phase != "both" for edit in plan.edits)
    boundary = plan.phase_boundary if phased else 1
    return plan.model_copy(update={"prompt_length": boundary, "answer_start": None, "constraint": constraint,
                                   "opening": None})
