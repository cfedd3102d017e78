"""From verdict and policy to a plan: pure, no I/O, the same inputs give the same plan.

    verdict     action of the policy    decision
    nothing     any                     pass      edits of every request
    flagged     forget                  forget    constraint, edits, and what the mode of the answer asks for:
                                                  `ignorance` an opening, `natural` a corruption; `refuse` refuses
    flagged     refuse                  refuse    empty plan; the request never reaches the engine
    flagged     monitor                 monitor   edits of every request; otherwise only counted
    unknown     any                     unknown   edits of every request; the failure mode decides whether it runs

A plan has room for 4 packs. A prompt that needs more is refused: to drop one of them would be to let knowledge through.
In an answer of ignorance the prompt is not corrupted. Corruption covers the tokens that name a target; where the prompt
names none, the whole last user turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from guard.lanes import edit_lanes
from guard.plan import MAX_EXEMPT_PATTERNS, MAX_LANES, Constraint, Corruption, CorruptionKind, OpenedAnswer, Plan
from guard.policy import AnswerMode, Tenant
from guard.verdict import DecodedPrompt, Span, Verdict

Outcome = Literal["pass", "forget", "refuse", "monitor", "unknown"]
Scope = Literal["spans", "prompt"]
DEFAULT_RHO = 5.0
DEFAULT_SCOPE: Scope = "prompt"


class TokenRanges(Protocol):
    """Maps characters of a decoded prompt to token positions."""

    def token_ranges(self, prompt: DecodedPrompt, char_spans: Iterable[Span]) -> tuple[Span, ...]:
        """Half-open token ranges, special tokens left out."""
        ...

    def ordinary_ranges(self, prompt: DecodedPrompt) -> tuple[Span, ...]:
        """Half-open ranges of all ordinary tokens."""
        ...

    def last_turn(self, prompt: DecodedPrompt) -> Span:
        """Character span of the last user turn."""
        ...


class FittedStrength(Protocol):
    """The strength that was fitted for the served model."""

    @property
    def rho(self) -> float:
        """Noise norm over row norm."""
        ...

    @property
    def scope(self) -> Literal["spans", "prompt"]:
        """`spans`: tokens that name a target; `prompt`: all ordinary tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to a request."""

    action: Outcome
    plan: Plan


def decide(
    tenant: Tenant, verdict: Verdict, prompt: DecodedPrompt, decoder: TokenRanges, *,
    fitted: FittedStrength | None = None, constraint_digest: str | None = None, exempt: Iterable[int] = (),
    start: int | None = None, mode: AnswerMode = "natural", wordings: tuple[str, ...] = (),
) -> Decision:
    """Plan for `prompt` of `tenant`.

    `constraint_digest` names the tenant's automaton (None: it has no forbidden strings), `exempt` the patterns that may
    be echoed, `start` the first position that takes part in a match (default: `text_start`). `mode` says how a flagged
    prompt is answered; one of `ignorance` opens with one of the `wordings`.
    """
    empty = Plan(
        tenant_index=tenant.index, policy_version=tenant.policy_version, prompt_length=max(1, len(prompt.token_ids))
    )
    action: Outcome = tenant.policy.action
    if verdict.unknown or not verdict.flagged:
        action = "unknown" if verdict.unknown else "pass"
    if action == "forget" and mode == "refuse":
        action = "refuse"
    edits = edit_lanes(tenant, verdict.hits if action == "forget" else ())
    if action == "refuse" or len(edits) > MAX_LANES:
        return Decision("refuse", empty)
    plan = empty.model_copy(update={"edits": edits})
    if action != "forget":
        return Decision(action, plan)
    if mode == "ignorance" and wordings:
        # the model completes a statement of not knowing: it must be able to read what it does not know
        plan = plan.model_copy(update={"opening": OpenedAnswer(wordings=wordings, start=len(prompt.token_ids))})
        corruption = None
    else:
        corruption = _corruption(tenant, verdict, prompt, decoder, fitted)
    constraint = None
    if tenant.policy.constraint.enabled and constraint_digest is not None:
        constraint = constraint_of(prompt, constraint_digest, exempt, start)
    return Decision("forget", plan.model_copy(update={"corruption": corruption, "constraint": constraint}))


def constraint_of(
    prompt: DecodedPrompt, digest: str, exempt: Iterable[int] = (), start: int | None = None
) -> Constraint:
    """The constraint of a prompt. More exemptions than a plan can carry are dropped: those strings stay forbidden."""
    kept = tuple(sorted(exempt))[:MAX_EXEMPT_PATTERNS]
    return Constraint(digest=digest, start=text_start(prompt) if start is None else start, exempt=kept)


def text_start(prompt: DecodedPrompt) -> int:
    """First position after the last special token: from there the prompt and the answer are one text."""
    for position in range(len(prompt.special), 0, -1):
        if prompt.special[position - 1]:
            return position
    return 0


def corruption_seed(tenant: Tenant) -> int:
    """Noise seed of a tenant's policy version: the same prompt is corrupted the same way every time."""
    digest = hashlib.sha256(f"{tenant.policy_version}\x1f{tenant.name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _corruption(
    tenant: Tenant, verdict: Verdict, prompt: DecodedPrompt, decoder: TokenRanges, fitted: FittedStrength | None
) -> Corruption | None:
    policy = tenant.policy.corruption
    if not policy.enabled:
        return None
    scope = policy.scope or (fitted.scope if fitted is not None else DEFAULT_SCOPE)
    ranges: tuple[Span, ...] = ()
    if scope == "spans":
        spans = [span for hit in verdict.hits for span in hit.spans]
        ranges = decoder.token_ranges(prompt, spans) or decoder.token_ranges(prompt, (decoder.last_turn(prompt),))
    ranges = ranges or decoder.ordinary_ranges(prompt)
    if not ranges:
        return None
    fitted_rho = fitted.rho if fitted is not None else DEFAULT_RHO
    kind: CorruptionKind = policy.kind
    return Corruption(
        kind=kind, dims=policy.dims, rho=fitted_rho if policy.rho is None else policy.rho, seed=corruption_seed(tenant),
        ranges=ranges,
    )
