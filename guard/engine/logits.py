"""The logits processor of the guard, for both runners of vLLM 0.32.

vLLM's V1 runner builds it with three arguments and keeps rows by batch position (`update_state`); Model Runner V2
builds it with two and keeps requests by a stable slot (`add_request`). It is passed by `--logits-processors`, never as
an entry point: entry points are dropped silently under speculative decoding. A request without a valid ticket may
only end. Source of the order of stages: vllm/v1/sample/sampler.py, vllm/v1/worker/gpu/sample/sampler.py.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.tokenizers.registry import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as BatchProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as SlotProcessor

from guard.classifiers.opening_table import FREE
from guard.classifiers.vocabulary import Vocabulary
from guard.engine.constraints import ConstraintSlots
from guard.engine.masked_rows import FORBIDDEN, Masks, Row, Rule
from guard.engine.openings import CompiledOpenings
from guard.engine.tickets import VerifiedTickets
from guard.errors import ConfigurationError, EngineMismatchError, GuardError, ResidencyError
from guard.kernels.mask import NOT_GUARDED, DeviceBank, keep_tokens, mask_tokens, only_end_tokens, rescue_empty
from guard.kernels.opening import OpeningBank
from guard.packs.bank import EditSlots
from guard.plan import MAX_EXEMPT_PATTERNS, Plan

logger = init_logger(__name__)
class GuardLogitsProcessor(BatchProcessor, SlotProcessor):
    """Masks every token that would complete a forbidden string of the plan, or leave the wordings of its opening."""

    def __init__(self, vllm_config: Any, state: Any, is_pin_memory: bool | None = None) -> None:
        """`state` is the device on the V1 runner, vLLM's LogitsProcRequestState on Model Runner V2."""
        tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        if tokenizer is None:
            raise ConfigurationError("the guard needs the tokenizer in the engine: remove --skip-tokenizer-init")
        self.vocabulary = Vocabulary.from_tokenizer(tokenizer)
        self.openings = CompiledOpenings(tokenizer)
        self.rows: dict[int, Row] = {}
        self.bank: DeviceBank | None = None
        self.opening_bank: OpeningBank | None = None
        self.request_states: Any = None
        self._tickets: VerifiedTickets | None = None
        self._edits: EditSlots | None = None
        self._constraints: ConstraintSlots | None = None
        # Model Runner V2: what the request in a slot refers to
        self._referred: dict[int, str] = {}
        if isinstance(state, torch.device):
            self.masks = Masks(self.vocabulary, state)
            self.end_ids = torch.tensor(self.vocabulary.eos_ids, dtype=torch.int64, device=state)
        else:
            self.request_states = state

    def connect(self, tickets: VerifiedTickets, num_slots: int, edits: EditSlots | None) -> ConstraintSlots:
        """Join the state of this worker: vLLM builds the processor before there is one. Until then nothing may be said.

        Returns the constraint slots (`num_slots`, slot 0 included), which are made for this processor's vocabulary.
        """
        if self.request_states is not None:
            states, words = self.request_states, self.vocabulary
            self.bank = DeviceBank(words.arrays(), words.eos_ids, num_slots, states.max_num_reqs, states.device)
            self.opening_bank = OpeningBank(states.max_num_reqs, words.eos_ids, states.device)
        self._tickets, self._edits = tickets, edits
        self._constraints = ConstraintSlots(self.vocabulary, num_slots, self.bank)
        return self._constraints

    # V1 runner

    def is_argmax_invariant(self) -> bool:
        """A mask changes the argmax: greedy requests must pass through it too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that left, joined or moved, in this order."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._leave(self.rows.pop(index, None))
        for index, params, prompt, outputs in batch_update.added:
            self._leave(self.rows.pop(index, None))
            rule = self._rule(params)
            if rule is not None:
                # prompt embeddings have no ids to walk
                self.rows[index] = Row(rule if prompt is not None else FORBIDDEN, prompt or [], outputs)
        for source, target, direction in batch_update.moved:
            moved, replaced = self.rows.pop(source, None), self.rows.pop(target, None)
            if moved is not None:
                self.rows[target] = moved
            if direction != MoveDirectionality.SWAP:
                self._leave(replaced)
            elif replaced is not None:
                self.rows[source] = replaced

    # Model Runner V2

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Give the slot's whole state anew; True when the request's logits may change."""
        if self.bank is None:
            raise EngineMismatchError("a request came before the guard's mask was connected")
        self.remove_request(req_idx)
        rule = self._rule(sampling_params)
        if rule is None:
            return False
        exempt = tuple(sorted(rule.exempt))[:MAX_EXEMPT_PATTERNS]
        self.bank.set_request(req_idx, rule.slot, rule.start, rule.skip_special, exempt)
        if self.opening_bank is not None and rule.opening is not None:
            self.opening_bank.set_request(req_idx, rule.opening, rule.opening_start)
        self._referred[req_idx] = rule.digest
        return True

    def remove_request(self, req_idx: int) -> None:
        """The request in a slot has ended or was preempted: it refers to nothing any more, and is not masked."""
        if self.bank is not None:
            self.bank.clear_request(req_idx)
            if self.opening_bank is not None:
                self.opening_bank.clear_request(req_idx)
            self._drop(self._referred.pop(req_idx, ""))

    def apply_staged_writes(self) -> None:
        """Bring the new requests' states to the device."""
        if self.bank is not None:
            self.bank.flush()
        if self.opening_bank is not None:
            self.opening_bank.flush()

    # both

    def apply(self, logits: torch.Tensor, ctx: LogitsContext | None = None) -> torch.Tensor:
        """Mask `logits` [rows, vocabulary] float32 in place."""
        if ctx is None:
            self._apply_rows(logits)
            return logits
        states = self.request_states
        if self.opening_bank is not None and self.opening_bank.any_opened(ctx.idx_mapping_np):
            self.opening_bank.apply(
                logits, ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.input_ids, states.all_token_ids.gpu,
                states.total_len.gpu,
            )
        if self.bank is not None and self.bank.any_guarded(ctx.idx_mapping_np):
            self.bank.apply(
                logits, ctx.idx_mapping, ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.input_ids,
                states.all_token_ids.gpu, states.prompt_len.gpu, states.total_len.gpu,
            )
        return logits

    def _rule(self, params: SamplingParams) -> Rule | None:
        """The rule of a request, None when its plan says nothing of its tokens. A ticket that is wrong: FORBIDDEN."""
        if self._tickets is None or self._constraints is None:
            return FORBIDDEN
        try:
            plan = self._tickets.of(params).plan
            self._check_edits(plan)
            opening = None if plan.opening is None else self.openings.of(plan.opening.wordings)
            constraint = plan.constraint
            if constraint is None:
                return None if plan.opening is None else Rule(
                    None, NOT_GUARDED, opening=opening, opening_start=plan.opening.start
                )
            slot, automaton = self._constraints.enter(constraint.digest)
        except GuardError as error:
            logger.warning("guard: a request may only end: %s", error)
            self._constraints.count("unresolved_rows")
            return FORBIDDEN
        exempt = frozenset(constraint.exempt)
        return Rule(
            automaton, slot, constraint.digest, constraint.start, exempt, bool(params.skip_special_tokens), opening,
            plan.opening.start if plan.opening is not None else 0,
        )

    def _check_edits(self, plan: Plan) -> None:
        """Raise ResidencyError unless everything that the edits of `plan` name is in the bank."""
        if any(self._edits is None or self._edits.slot_of(edit.pack) is None for edit in plan.edits):
            raise ResidencyError("an edit of its plan is not resident")

    def _leave(self, row: Row | None) -> None:
        if row is not None:
            self._drop(row.rule.digest)

    def _drop(self, digest: str) -> None:
        if digest and self._constraints is not None:
            self._constraints.drop(digest)

    def _count(self, name: str, amount: int = 1) -> None:
        if self._constraints is not None:
            self._constraints.count(name, amount)

    def _apply_rows(self, logits: torch.Tensor) -> None:
        masked = []
        for index, row in self.rows.items():
            if index >= logits.shape[0]:
                continue
            try:
                self._apply_row(logits, index, row)
            except Exception:
                # an error here would end the engine for every tenant: this row may only end
                logger.exception("guard: masking failed, the request may only end")
                only_end_tokens(logits, index, self.end_ids)
                self._count("failed_rows")
            masked.append(index)
        self._count("rescued_rows", rescue_empty(logits, masked, self.end_ids))

    def _apply_row(self, logits: torch.Tensor, index: int, row: Row) -> None:
        rule, automaton, opening = row.rule, row.rule.automaton, row.rule.opening
        known = opening is None or row.follow_opening(opening)
        if rule.blocked or not known or not (automaton is None or row.catch_up(automaton, self.vocabulary)):
            only_end_tokens(logits, index, self.end_ids)
            self._count("blocked_rows")
            return
        if opening is not None and row.node != FREE:
            keep_tokens(logits, index, torch.from_numpy(opening.allowed(row.node).astype("int64")).to(logits.device))
            self._count("opened_rows")
        self._count("guarded_rows")
        if automaton is None:
            return
        masked = sum(mask_tokens(logits, index, ids) for ids in self.masks.of(rule, automaton, row.state))
        self._count("masked_tokens", masked)
        self._count(f"masked_tokens:{row.rule.slot}", masked)
