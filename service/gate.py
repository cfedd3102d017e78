"""The pipeline that every generation passes: decode, detect, plan, make resident, sign.

Fail closed: an error in any step refuses the request (503, worth a retry); nothing is ever let through because a part
of the guard did not work. Only a tenant's own `failure_mode: open` lets a prompt without a verdict pass, is counted,
and still has its output checked.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import structlog

from guard import ticket
from guard.classifiers.normalize import mask_form
from guard.classifiers.spans import PromptDecoder
from guard.engine.admission import Admission, OutputCheck, RequestContext
from guard.errors import DetectorError, GuardError, RequestRefused
from guard.metrics import Metrics
from guard.plan import Constraint, Plan
from guard.planner import Decision, FittedStrength, constraint_of, decide, text_start
from guard.policy import Tenant
from guard.service.door.errors import content_filter_refusal, unavailable
from guard.service.edit_residency import EditResidency
from guard.service.residency import Residency, TenantConstraint
from guard.verdict import NOTHING, UNKNOWN, DecodedPrompt, Verdict

log = structlog.get_logger("guard.gate")


class PromptDetector(Protocol):
    """Classifies prompts."""

    async def detect(self, tenant: Tenant, prompt: DecodedPrompt) -> Verdict:
        """The verdict; `unknown` after an error or timeout."""
        ...

    def can_compare(self, tenant: Tenant) -> bool:
        """Whether generated sentences can be compared by meaning, if the tenant's policy asks for it."""
        ...

    async def similarity(self, tenant: Tenant, targets: Sequence[int], sentence: str) -> float:
        """Largest cosine of a generated sentence to an answer of `targets`. Raises DetectorError."""
        ...


class GatePipeline:
    """The gate of one server."""

    def __init__(
        self, decoder: PromptDecoder, detector: PromptDetector, residency: Residency, edits: EditResidency,
        metrics: Metrics, key: bytes, fitted: FittedStrength | None = None,
    ) -> None:
        self._decoder = decoder
        self._detector = detector
        self._residency = residency
        self._edits = edits
        self._metrics = metrics
        self._key = key
        self._fitted = fitted
        self._corrupted = 0

    def admit_now(self, context: RequestContext, token_ids: Sequence[int]) -> Admission | None:
        """Admit a tenant without a forget-list and without edits of every request at once."""
        tenant = context.tenant
        if tenant.guarded:
            return None
        self._metrics.requests.labels(str(tenant.index), "pass", "input").inc()
        plan = Plan(
            tenant_index=tenant.index, policy_version=tenant.policy_version, prompt_length=len(token_ids)
        )
        return self._sign(tenant, plan, token_ids, None)

    async def admit(self, context: RequestContext, token_ids: Sequence[int]) -> Admission:
        """Run the pipeline for one prompt. Raises RequestRefused."""
        try:
            with self._metrics.stage("total"):
                return await self._admit(context, token_ids)
        except RequestRefused as error:
            self._metrics.refused.labels(error.code).inc()
            raise
        except GuardError as error:
            reason = str(error) if isinstance(error, DetectorError) else type(error).__name__
            log.error("gate_failed", request_id=context.request_id, error=reason)
            self._metrics.refused.labels("guard_unavailable").inc()
            raise unavailable() from error
        except Exception as error:  # any fault of the guard refuses, never passes
            log.error("gate_failed", request_id=context.request_id, error=type(error).__name__)
            self._metrics.refused.labels("guard_unavailable").inc()
            raise unavailable() from error

    async def resume(self, context: RequestContext, admission: Admission, token_ids: Sequence[int]) -> Admission:
        """Admit the rest of an answer: the same plan with the constraint on. Packs stay referred to."""
        tenant = context.tenant
        try:
            plan = admission.plan
            constraint = await self._constraint(tenant)
            if plan.constraint is None and constraint is not None and tenant.policy.constraint.enabled:
                prompt = self._decoder.decode(token_ids[: plan.phase_boundary])
                allowed = constraint.exempt(prompt.text)
                plan = plan.model_copy(update={"constraint": constraint_of(prompt, constraint.digest, allowed)})
            plan = plan.model_copy(update={"prompt_length": len(token_ids), "answer_start": plan.phase_boundary})
            return self._sign(tenant, plan, token_ids, admission.check)
        except GuardError as error:
            log.error("resume_failed", request_id=context.request_id, error=type(error).__name__)
            raise unavailable() from error

    async def similar(self, context: RequestContext, admission: Admission, sentence: str) -> bool:
        """Whether a sentence means an answer of the targets that the prompt touched."""
        tenant = context.tenant
        if admission.check is None or not mask_form(sentence):
            return False
        try:
            cosine = await self._detector.similarity(tenant, admission.check.targets, sentence)
        except DetectorError as error:
            log.error("sentence_not_compared", request_id=context.request_id, error=str(error))
            self._metrics.detector_unknown.inc()
            if tenant.policy.failure_mode == "closed":
                raise
            self._metrics.unguarded.inc()
            return False
        return cosine >= tenant.policy.output.semantic_threshold

    def finish(self, context: RequestContext, admission: Admission) -> None:
        """Give back what the admission held."""
        self._give_back(admission.plan)
        self._metrics.requests.labels(str(context.tenant.index), "finished", "output").inc()

    def count_output(
        self, context: RequestContext, *, held_back: int = 0, rollbacks: int = 0, filtered: int = 0
    ) -> None:
        """Count what the output check did."""
        if held_back:
            self._metrics.heldback_tokens.inc(held_back)
        if rollbacks:
            self._metrics.rollbacks.inc(rollbacks)
        if filtered:
            self._metrics.filtered.inc(filtered)
            self._metrics.requests.labels(str(context.tenant.index), "content_filter", "output").inc(filtered)

    async def _admit(self, context: RequestContext, token_ids: Sequence[int]) -> Admission:
        tenant = context.tenant
        if not self._detector.can_compare(tenant):
            raise DetectorError(f"tenant {tenant.index}: policy.output.semantic needs a sentence encoder")
        with self._metrics.stage("decode"):
            prompt = self._decoder.decode(token_ids)
        with self._metrics.stage("detect"):
            verdict = await self._verdict(tenant, prompt)
        constraint = None
        if tenant.policy.action == "forget" and (tenant.policy.constraint.enabled or tenant.policy.output.enabled):
            with self._metrics.stage("residency"):
                constraint = await self._constraint(tenant)
        allowed = constraint.exempt(prompt.text) if constraint is not None else frozenset()
        with self._metrics.stage("plan"):
            decision = decide(
                tenant, verdict, prompt, self._decoder, fitted=self._fitted,
                constraint_digest=constraint.digest if constraint is not None else None, exempt=allowed,
            )
        self._count(context, decision, verdict)
        self._refuse_by(decision, context)
        check = output_check(tenant, decision, verdict, constraint, allowed, prompt)
        await self._reserve(decision.plan)
        try:
            with self._metrics.stage("sign"):
                return self._sign(tenant, decision.plan, token_ids, check)
        except BaseException:
            self._give_back(decision.plan)
            raise

    async def _reserve(self, plan: Plan) -> None:
        """Refer to all that the plan needs, and wait until it is resident; to nothing when that fails."""
        # at once: while the packs are being loaded, the tenant's list may go out of service
        if plan.constraint is not None:
            self._residency.acquire(plan.constraint.digest)
        try:
            if plan.edits:
                with self._metrics.stage("residency"):
                    await self._edits.acquire(plan.packs)
        except BaseException:
            if plan.constraint is not None:
                self._residency.release(plan.constraint.digest)
            raise
        if plan.corruption is not None:
            self._count_corrupted(1)

    def _give_back(self, plan: Plan) -> None:
        if plan.constraint is not None:
            self._residency.release(plan.constraint.digest)
        self._edits.release(plan.packs)
        if plan.corruption is not None:
            self._count_corrupted(-1)

    async def _verdict(self, tenant: Tenant, prompt: DecodedPrompt) -> Verdict:
        if not tenant.listed or tenant.policy.detector.mode == "never":
            return NOTHING
        try:
            return await self._detector.detect(tenant, prompt)
        except DetectorError:
            return UNKNOWN

    def _count_corrupted(self, change: int) -> None:
        # a gauge of the mode `mostrecent` can only be set
        self._corrupted += change
        self._metrics.slots_in_use.labels("corruption").set(self._corrupted)

    async def _constraint(self, tenant: Tenant) -> TenantConstraint | None:
        return await self._residency.constraint(tenant)

    def _count(self, context: RequestContext, decision: Decision, verdict: Verdict) -> None:
        metrics = self._metrics
        metrics.requests.labels(str(context.tenant.index), decision.action, "input").inc()
        if verdict.unknown:
            metrics.detector_unknown.inc()
        if verdict.hits:
            best = max(verdict.hits, key=lambda hit: hit.score)
            metrics.detector_score.labels(best.part).observe(best.score)
        if decision.plan.corruption is not None:
            metrics.planned.labels("corruption").inc()
        if decision.plan.constraint is not None:
            metrics.planned.labels("constraint").inc()
        if decision.plan.edits:
            metrics.planned.labels("edit").inc()

    def _refuse_by(self, decision: Decision, context: RequestContext) -> None:
        if decision.action == "refuse":
            raise content_filter_refusal(context.prompt_field)
        if decision.action == "unknown":
            if context.tenant.policy.failure_mode == "closed":
                raise unavailable()
            self._metrics.unguarded.inc()

    def _sign(self, tenant: Tenant, plan: Plan, token_ids: Sequence[int], check: OutputCheck | None) -> Admission:
        salt = ticket.cache_salt(tenant.name, salt_plan(plan), self._key)
        text = ticket.sign(plan, salt, token_ids, self._key, now_s=time.time())
        return Admission(plan, text, salt, check)


def output_check(
    tenant: Tenant, decision: Decision, verdict: Verdict, constraint: TenantConstraint | None, allowed: frozenset[int],
    prompt: DecodedPrompt,
) -> OutputCheck | None:
    """Flagged (or unknown) prompts are compared with all patterns, others with those named in the list itself.

    Answers to flagged prompts are also compared by meaning, where the policy says so, with the targets of the verdict.
    """
    policy = tenant.policy.output
    if not policy.enabled or decision.action == "monitor":
        return None
    targets: tuple[int, ...] = ()
    if policy.semantic and decision.action == "forget":
        targets = tuple(hit.target for hit in verdict.hits if tenant.targets[hit.target].answers)
    patterns = constraint.automaton.patterns if constraint is not None else ()
    exempt = allowed
    if constraint is not None and decision.action == "pass":
        patterns = constraint.explicit_patterns
        exempt = constraint.explicit_exempt(allowed)
    if len(exempt) == len(patterns) and not targets:
        return None
    start = text_start(prompt)
    seed = prompt.text[prompt.offsets[start][0] :] if start < len(prompt.offsets) else ""
    return OutputCheck(patterns, exempt, seed, policy.max_rollbacks, targets)


def salt_plan(plan: Plan) -> Plan:
    """The part of a plan that cached blocks depend on: not the prompt's length, nor where a constraint begins.

    Without this, two turns of one conversation would never share a block. Only edits of one phase depend on where the
    answer begins: their next turn reads tokens as a prompt that were edited as an answer.
    """
    constraint = plan.constraint
    if constraint is not None:
        constraint = Constraint(digest=constraint.digest, start=0)
    phased = any(edit.phase != "both" for edit in plan.edits)
    boundary = plan.phase_boundary if phased else 1
    return plan.model_copy(update={"prompt_length": boundary, "answer_start": None, "constraint": constraint})
