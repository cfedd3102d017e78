"""The logits processor of the guard, for both runners of vLLM 0.32.

vLLM's V1 runner builds it with three arguments and keeps rows by batch position (`update_state`); Model Runner V2
builds it with two and keeps requests by a stable slot (`add_request`). It is passed by `--logits-processors`, never as
an entry point: entry points are dropped silently under speculative decoding. A request without a valid ticket may
only end. Source of the order of stages: vllm/v1/sample/sampler.py, vllm/v1/worker/gpu/sample/sampler.py.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.tokenizers.registry import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as BatchProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as SlotProcessor

from guard.classifiers.automaton import START, Automaton, State
from guard.classifiers.vocabulary import Vocabulary
from guard.engine.constraints import ConstraintSlots
from guard.engine.tickets import VerifiedTickets
from guard.errors import ConfigurationError, EngineMismatchError, GuardError, ResidencyError
from guard.kernels.mask import BLOCKED, DeviceBank, mask_tokens, only_end_tokens, rescue_empty
from guard.packs.bank import EditSlots
from guard.plan import MAX_EXEMPT_PATTERNS, Plan

logger = init_logger(__name__)
MASKS_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Rule:
    """What a request's ticket says about its tokens; `automaton` None means that it may only end.

    `digest` is what the request refers to in the constraint slots until it leaves, empty for nothing.
    """

    automaton: Automaton | None
    slot: int
    digest: str = ""
    start: int = 0
    exempt: frozenset[int] = frozenset()
    skip_special: bool = True


FORBIDDEN = Rule(None, BLOCKED)


@dataclass(slots=True)
class Row:
    """A batch row of the V1 runner. `outputs` is vLLM's live list; `state` covers the first `position` tokens."""

    rule: Rule
    prompt: list[int]
    outputs: list[int]
    state: State = START
    position: int = 0

    def catch_up(self, automaton: Automaton, vocabulary: Vocabulary) -> bool:
        """Advance to the last token. False when a token is still unknown (vLLM's placeholder -1)."""
        total = len(self.prompt) + len(self.outputs)
        if self.position > total:
            self.state, self.position = START, 0
        self.position = max(self.position, min(self.rule.start, total))
        while self.position < total:
            offset = self.position - len(self.prompt)
            token = self.outputs[offset] if offset >= 0 else self.prompt[self.position]
            if token < 0:
                return False
            skip = offset >= 0 and self.rule.skip_special
            self.state = automaton.advance(self.state, token, vocabulary, skip_special=skip)
            self.position += 1
        return True


class Masks:
    """Ids to mask by (automaton, state, exempt patterns), the most recent kept."""

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._kept: OrderedDict[tuple[Any, ...], torch.Tensor] = OrderedDict()

    def of(self, rule: Rule, automaton: Automaton, state: State) -> tuple[torch.Tensor, ...]:
        """Disjoint sorted int64 id tensors."""
        if state.pending:
            return (self._get(rule, automaton, state),)
        return self._get(rule, automaton, None), self._get(rule, automaton, state)

    def _get(self, rule: Rule, automaton: Automaton, state: State | None) -> torch.Tensor:
        # by digest: an object's id could be given to another automaton
        key = (automaton.digest, rule.exempt, state)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if state is None:
            ids = automaton.shared(rule.exempt)
        elif state.pending:
            ids = automaton.banned(state, self._vocabulary, rule.exempt)
        else:
            ids = automaton.begun(state.node, self._vocabulary, rule.exempt)
        tensor = torch.from_numpy(ids.astype("int64")).to(self._device)
        self._kept[key] = tensor
        if len(self._kept) > MASKS_KEPT:
            self._kept.popitem(last=False)
        return tensor


class GuardLogitsProcessor(BatchProcessor, SlotProcessor):
    """Masks every token that would complete a forbidden string of the request's plan."""

    def __init__(self, vllm_config: Any, state: Any, is_pin_memory: bool | None = None) -> None:
        """`state` is the device on the V1 runner, vLLM's LogitsProcRequestState on Model Runner V2."""
        tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        if tokenizer is None:
            raise ConfigurationError("the guard needs the tokenizer in the engine: remove --skip-tokenizer-init")
        self.vocabulary = Vocabulary.from_tokenizer(tokenizer)
        self.rows: dict[int, Row] = {}
        self.bank: DeviceBank | None = None
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
        self._referred[req_idx] = rule.digest
        return True

    def remove_request(self, req_idx: int) -> None:
        """The request in a slot has ended or was preempted: it refers to nothing any more, and is not masked."""
        if self.bank is not None:
            self.bank.clear_request(req_idx)
            self._drop(self._referred.pop(req_idx, ""))

    def apply_staged_writes(self) -> None:
        """Bring the new requests' states to the device."""
        if self.bank is not None:
            self.bank.flush()

    # both

    def apply(self, logits: torch.Tensor, ctx: LogitsContext | None = None) -> torch.Tensor:
        """Mask `logits` [rows, vocabulary] float32 in place."""
        if ctx is None:
            self._apply_rows(logits)
        elif self.bank is not None and self.bank.any_guarded(ctx.idx_mapping_np):
            states = self.request_states
            self.bank.apply(
                logits, ctx.idx_mapping, ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.input_ids,
                states.all_token_ids.gpu, states.prompt_len.gpu, states.total_len.gpu,
            )
        return logits

    def _rule(self, params: SamplingParams) -> Rule | None:
        """The rule of a request, None when its plan has no constraint. Whatever is wrong with the ticket: FORBIDDEN."""
        if self._tickets is None or self._constraints is None:
            return FORBIDDEN
        try:
            plan = self._tickets.of(params).plan
            self._check_edits(plan)
            constraint = plan.constraint
            if constraint is None:
                return None
            slot, automaton = self._constraints.enter(constraint.digest)
        except GuardError as error:
            logger.warning("guard: a request may only end: %s", error)
            self._constraints.count("unresolved_rows")
            return FORBIDDEN
        exempt = frozenset(constraint.exempt)
        return Rule(
            automaton, slot, constraint.digest, constraint.start, exempt, bool(params.skip_special_tokens)
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
        automaton = row.rule.automaton
        if automaton is None or not row.catch_up(automaton, self.vocabulary):
            only_end_tokens(logits, index, self.end_ids)
            self._count("blocked_rows")
            return
        masked = sum(mask_tokens(logits, index, ids) for ids in self.masks.of(row.rule, automaton, row.state))
        self._count("guarded_rows")
        self._count("masked_tokens", masked)
        self._count(f"masked_tokens:{row.rule.slot}", masked)
