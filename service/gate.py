"""The pipeline that every generation passes: decode, detect, plan, make resident, sign.

Fail closed: an error in any step refuses the request (503, worth a retry); nothing is ever let through because a part
of the guard did not work. Only a tenant's own `failure_mode: open` lets a prompt without a verdict pass, is counted,
and still has its output checked.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from guard import ticket
from guard.classifiers.asked_turns import asked_turns
from guard.classifiers.follow_up import Conversation
from guard.classifiers.normalize import mask_form
from guard.classifiers.spans import PromptDecoder
from guard.engine.admission import Admission, IgnoranceEnd, RequestContext
from guard.errors import DetectorError, RequestRefused, ResidencyError
from guard.metrics import Metrics
from guard.plan import OpenedAnswer, Plan
from guard.planner import Decision, FittedStrength, constraint_of, decide
from guard.policy import Tenant
from guard.salt import salt_plan
from guard.service.door.errors import unavailable
from guard.service.door.policy_refusal import policy_refusal
from guard.service.gate_counts import GateCounts
from guard.service.openings import answer_mode, bridges_for, openings_for, steering
from guard.service.output_check import flagged_check, output_check
from guard.service.residency.compiled_lists import CompiledLists, needs_list
from guard.service.residency.hold import Hold, Residency
from guard.service.residency.list_files import CompiledList
from guard.service.soft_match import SoftMatch
from guard.service.unknown_verdicts import UnknownVerdicts
from guard.verdict import NOTHING, UNKNOWN, DecodedPrompt, Span, Verdict

log = structlog.get_logger("guard.gate")


class PromptDetector(Protocol):
    """Classifies prompts."""

    async def detect(
        self, tenant: Tenant, prompt: DecodedPrompt, asked: Sequence[Span] | None = None
    ) -> Verdict:
        """The verdict; `unknown` after an error or timeout. Meaning is looked for in `asked` (None: everywhere)."""
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
        self, decoder: PromptDecoder, detector: PromptDetector, lists: CompiledLists, residency: Residency,
        metrics: Metrics, key: bytes, fitted: FittedStrength | None = None, soft: SoftMatch | None = None,
    ) -> None:
        self._decoder, self._detector = decoder, detector
        self._lists, self._residency = lists, residency
        self.metrics = metrics
        self._key = key
        self._fitted, self._soft = fitted, soft
        self.counts = GateCounts(metrics)
        self._unknown = UnknownVerdicts()

    def admit_now(self, context: RequestContext, token_ids: Sequence[int]) -> Admission | None:
        """Admit a tenant without a forget-list and without edits of every request at once."""
        tenant = context.tenant
        if tenant.guarded:
            return None
        self.metrics.requests.labels(str(tenant.index), "pass", "input").inc()
        plan = Plan(
            tenant_index=tenant.index, policy_version=tenant.policy_version, prompt_length=len(token_ids)
        )
        return self._sign(tenant, plan, token_ids)

    @asynccontextmanager
    async def admitted(self, context: RequestContext, token_ids: Sequence[int]) -> AsyncIterator[GateLeave]:
        """Run the pipeline for one prompt; what its plan needs is resident until the end. Raises RequestRefused."""
        async with AsyncExitStack() as stack:
            with self._refusing(context), self.metrics.stage("total"):
                leave = await self._admit(context, token_ids, stack)
            yield leave

    async def similar(self, context: RequestContext, targets: tuple[int, ...], sentence: str) -> bool:
        """Whether a sentence means an answer of `targets`. Raises DetectorError where the policy fails closed."""
        tenant = context.tenant
        if not mask_form(sentence):
            return False
        try:
            cosine = await self._detector.similarity(tenant, targets, sentence)
        except DetectorError as error:
            log.error("sentence_not_compared", request_id=context.request_id, error=str(error))
            self.metrics.detector_unknown.inc()
            if tenant.policy.failure_mode == "closed":
                raise
            self.metrics.unguarded.inc()
            return False
        return cosine >= tenant.policy.output.semantic_threshold

    async def resume(
        self, context: RequestContext, leave: GateLeave, token_ids: Sequence[int]
    ) -> Admission:
        """Admit the rest of an answer: the same plan with the constraint on."""
        tenant, compiled = context.tenant, leave.compiled
        with self._refusing(context):
            plan = leave.admission.plan
            if plan.constraint is None and compiled is not None and tenant.policy.constraint.enabled:
                await leave.hold.add_list(compiled.digest)
                plan = plan.model_copy(
                    update={"constraint": constraint_of(leave.prompt, compiled.digest, leave.exempt)}
                )
            plan = plan.model_copy(update={"prompt_length": len(token_ids), "answer_start": plan.phase_boundary})
            return self._sign(tenant, plan, token_ids, leave.admission)

    async def flag(self, context: RequestContext, leave: GateLeave, token_ids: Sequence[int], text: str) -> Admission:
        """Admit a generation again because its answer named a target; `text` of the answer cannot be taken back."""
        tenant, compiled = context.tenant, leave.compiled
        mode = answer_mode(context)
        with self._refusing(context):
            if compiled is None or tenant.policy.action != "forget" or mode == "refuse":
                raise self._policy_refusal(context, leave.prompt)
            await leave.hold.add_list(compiled.digest)
            plan = leave.admission.plan
            update: dict[str, object] = {"prompt_length": len(token_ids), "answer_start": plan.phase_boundary}
            if not text:
                update = {}
            if tenant.policy.constraint.enabled:
                update["constraint"] = constraint_of(leave.prompt, compiled.digest, leave.exempt)
            question, end = self._question(leave.prompt), None
            if mode == "ignorance":
                end = bridges_for(question, compiled) if text else openings_for(tenant, question, compiled)
            if end is not None:
                update["opening"] = OpenedAnswer(wordings=end.wordings, start=len(token_ids))
            plan = plan.model_copy(update=update)
            check = flagged_check(tenant, compiled, leave.exempt, leave.prompt, text, end)
            bias, allowed = ({}, ()) if text else self._steering(tenant, end, leave.prompt)
            signed = self._sign(tenant, plan, token_ids)
        self.metrics.requests.labels(str(tenant.index), "forget", "output").inc()
        return Admission(signed.plan, signed.ticket, signed.salt, check, bias, allowed)

    def _steering(
        self, tenant: Tenant, end: IgnoranceEnd | None, prompt: DecodedPrompt
    ) -> tuple[dict[int, float], tuple[int, ...]]:
        """Biases and allowed tokens of an answer of ignorance; nothing for others."""
        return steering(tenant, prompt, self._decoder, end) if end is not None else ({}, ())

    async def _admit(
        self, context: RequestContext, token_ids: Sequence[int], stack: AsyncExitStack
    ) -> GateLeave:
        tenant = context.tenant
        if not self._detector.can_compare(tenant):
            raise DetectorError(f"tenant {tenant.index}: policy.output.semantic needs a sentence encoder")
        with self.metrics.stage("decode"):
            prompt = self._decoder.decode(token_ids)
        with self.metrics.stage("detect"):
            verdict = await self._verdict(tenant, prompt)
        compiled = None
        if needs_list(tenant):
            with self.metrics.stage("residency"):
                compiled = await self._lists.of(tenant)
        exempt = compiled.exempt(self._written(prompt)) if compiled is not None else frozenset()
        with self.metrics.stage("plan"):
            decision, end = self._decide(context, verdict, prompt, compiled, exempt)
        self.counts.decided(context, decision, verdict)
        self._refuse_by(decision, verdict, context, prompt)
        check = output_check(tenant, decision, verdict, compiled, exempt, prompt, end)
        with self.metrics.stage("residency"):
            hold = await stack.enter_async_context(self._residency.hold(decision.plan))
        self.counts.running(context, decision.plan, stack)
        with self.metrics.stage("sign"):
            signed = self._sign(tenant, decision.plan, token_ids)
        bias, allowed = self._steering(tenant, end, prompt)
        if self._soft is not None and decision.plan.constraint is not None:
            targets = [hit.target for hit in verdict.hits]
            bias = await self._soft.penalties(tenant, targets, self._question(prompt)) | bias
        admission = Admission(signed.plan, signed.ticket, signed.salt, check, bias, allowed)
        return GateLeave(self, context, hold, prompt, compiled, exempt, admission)

    def _decide(
        self, context: RequestContext, verdict: Verdict, prompt: DecodedPrompt, compiled: CompiledList | None,
        exempt: frozenset[int],
    ) -> tuple[Decision, IgnoranceEnd | None]:
        mode, end = answer_mode(context), None
        if verdict.flagged and mode == "ignorance":
            end = openings_for(context.tenant, self._question(prompt), compiled)
        decision = decide(
            context.tenant, verdict, prompt, self._decoder, fitted=self._fitted, mode=mode,
            wordings=end.wordings if end is not None else (),
            constraint_digest=compiled.digest if compiled is not None else None, exempt=exempt,
        )
        return decision, end if decision.plan.opening is not None else None

    def _written(self, prompt: DecodedPrompt) -> str:
        """What the user and the operator wrote: an earlier answer does not allow its strings again."""
        return "\n".join(prompt.text[start:end] for start, end in self._decoder.written_spans(prompt))

    def _question(self, prompt: DecodedPrompt) -> str:
        """What the user asked last."""
        start, end = self._decoder.last_turn(prompt)
        return prompt.text[start:end]

    @contextmanager
    def _refusing(self, context: RequestContext) -> Iterator[None]:
        """Whatever fails in the block refuses the request, and never lets it pass."""
        try:
            yield
        except RequestRefused as error:
            self.metrics.refused.labels(error.code, str(context.tenant.index)).inc()
            raise
        except Exception as error:  # any fault of the guard refuses
            # only these errors have messages without content
            reason = str(error) if isinstance(error, DetectorError | ResidencyError) else type(error).__name__
            log.error("gate_failed", request_id=context.request_id, tenant=context.tenant.index, error=reason)
            self.metrics.refused.labels("guard_unavailable", str(context.tenant.index)).inc()
            raise unavailable() from error

    async def _verdict(self, tenant: Tenant, prompt: DecodedPrompt) -> Verdict:
        if not tenant.listed or tenant.policy.detector.mode == "never":
            return NOTHING
        conversation = Conversation(prompt.text, self._decoder.turn_roles(prompt))
        try:
            verdict = await self._detector.detect(tenant, prompt, asked_turns(conversation))
        except DetectorError:
            return UNKNOWN
        # what an earlier turn touched counts where the last one goes on about it
        hits = tuple(hit for hit in verdict.hits if conversation.touches(hit.spans))
        return replace(verdict, hits=hits)

    def _refuse_by(
        self, decision: Decision, verdict: Verdict, context: RequestContext, prompt: DecodedPrompt
    ) -> None:
        if decision.action == "refuse":
            raise self._policy_refusal(context, prompt)
        if decision.action == "unknown":
            closed = context.tenant.policy.failure_mode == "closed"
            self._unknown.report(context.tenant.index, verdict.reason, context.request_id, closed=closed)
            if closed:
                raise unavailable()
            self.metrics.unguarded.inc()

    def _policy_refusal(self, context: RequestContext, prompt: DecodedPrompt) -> RequestRefused:
        policy = context.tenant.policy
        return policy_refusal(policy, self._question(prompt), len(prompt.token_ids), context.prompt_field)

    def _sign(
        self, tenant: Tenant, plan: Plan, token_ids: Sequence[int], before: Admission | None = None
    ) -> Admission:
        salt = ticket.cache_salt(tenant.name, salt_plan(plan), self._key)
        text = ticket.sign(plan, salt, token_ids, self._key, now_s=time.time())
        if before is None:
            return Admission(plan, text, salt)
        return replace(before, plan=plan, ticket=text, salt=salt)


@dataclass(slots=True)
class GateLeave:
    """Leave to run one generation, for as long as the gate's context is open. See `guard.engine.admission.Leave`.

    `exempt` are the forbidden strings (indices into `compiled.patterns`) that the prompt itself contains.
    """

    gate: GatePipeline
    context: RequestContext
    hold: Hold
    prompt: DecodedPrompt
    compiled: CompiledList | None
    exempt: frozenset[int]
    admission: Admission

    async def resume(self, token_ids: Sequence[int]) -> Admission:
        """Admit the rest of an answer after a roll-back. Raises RequestRefused."""
        self.admission = await self.gate.resume(self.context, self, token_ids)
        return self.admission

    async def flag(self, token_ids: Sequence[int], text: str) -> Admission:
        """Admit the generation again as a flagged one, because its answer named a target. Raises RequestRefused."""
        self.admission = await self.gate.flag(self.context, self, token_ids, text)
        return self.admission

    async def similar(self, sentence: str) -> bool:
        """Whether a sentence means an answer of the targets that the prompt touched. Raises DetectorError."""
        check = self.admission.check
        return check is not None and await self.gate.similar(self.context, check.targets, sentence)

    def count_output(self, *, held_back: int = 0, rollbacks: int = 0, filtered: int = 0) -> None:
        """Count what the output check did."""
        self.gate.counts.output(self.context, held_back, rollbacks, filtered)
