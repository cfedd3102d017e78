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
from guard.engine.constraints import SLOTS, ConstraintStore, constraint_store
from guard.engine.resident_edits import edits_resident
from guard.errors import ConfigurationError, GuardError, ResidencyError
from guard.kernels.mask import BLOCKED, DeviceBank, mask_tokens, only_end_tokens, rescue_empty
from guard.plan import MAX_EXEMPT_PATTERNS
from guard.ticket import EXTRA_ARG, read_key, verify

logger = init_logger(__name__)
MASKS_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Rule:
    """What a request's ticket says about its tokens; `automaton` None means that it may only end."""

    automaton: Automaton | None
    slot: int
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


def rule_of(params: SamplingParams, store: ConstraintStore) -> Rule | None:
    """The rule of a request, None when its plan has no constraint. Whatever is wrong with the ticket: FORBIDDEN."""
    try:
        ticket = verify((params.extra_args or {}).get(EXTRA_ARG), read_key(), token_ids=None, now_s=None)
        if not edits_resident(ticket.plan):
            raise ResidencyError("an edit of its plan is not resident")
        constraint = ticket.plan.constraint
        if constraint is None:
            return None
        slot, automaton = store.find(constraint.digest)
    except GuardError as error:
        logger.warning("guard: a request may only end: %s", error)
        store.count("unresolved_rows")
        return FORBIDDEN
    exempt = frozenset(constraint.exempt)
    return Rule(automaton, slot, constraint.start, exempt, bool(params.skip_special_tokens))


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
        self.store = constraint_store()
        self.store.configure(self.vocabulary)
        self.rows: dict[int, Row] = {}
        self.bank: DeviceBank | None = None
        self.request_states: Any = None
        if isinstance(state, torch.device):
            self._prepare_host(state)
        else:
            self._prepare_device(state)

    def _prepare_host(self, device: torch.device) -> None:
        self.masks = Masks(self.vocabulary, device)
        self.end_ids = torch.tensor(self.vocabulary.eos_ids, dtype=torch.int64, device=device)

    def _prepare_device(self, state: Any) -> None:
        self.request_states = state
        words = self.vocabulary
        self.bank = DeviceBank(words.arrays(), words.eos_ids, SLOTS, state.max_num_reqs, state.device)
        self.store.connect(self._on_change, self.bank.used_slots, self.bank.counters)

    def _on_change(self, slot: int, automaton: Automaton | None) -> None:
        if self.bank is not None:
            self.bank.put(slot, None if automaton is None else automaton.arrays)

    # V1 runner

    def is_argmax_invariant(self) -> bool:
        """A mask changes the argmax: greedy requests must pass through it too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that left, joined or moved, in this order."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.rows.pop(index, None)
        for index, params, prompt, outputs in batch_update.added:
            self.rows.pop(index, None)
            rule = rule_of(params, self.store)
            if rule is not None:
                # prompt embeddings have no ids to walk
                self.rows[index] = Row(rule if prompt is not None else FORBIDDEN, prompt or [], outputs)
        for source, target, direction in batch_update.moved:
            moved, replaced = self.rows.pop(source, None), self.rows.pop(target, None)
            if moved is not None:
                self.rows[target] = moved
            if direction == MoveDirectionality.SWAP and replaced is not None:
                self.rows[source] = replaced

    # Model Runner V2

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Give the slot's whole state anew; True when the request's logits may change."""
        if self.bank is None:
            return False
        rule = rule_of(sampling_params, self.store)
        if rule is None:
            self.bank.clear_request(req_idx)
            return False
        exempt = tuple(sorted(rule.exempt))[:MAX_EXEMPT_PATTERNS]
        self.bank.set_request(req_idx, rule.slot, rule.start, rule.skip_special, exempt)
        return True

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
                self.store.count("failed_rows")
            masked.append(index)
        self.store.count("rescued_rows", rescue_empty(logits, masked, self.end_ids))

    def _apply_row(self, logits: torch.Tensor, index: int, row: Row) -> None:
        automaton = row.rule.automaton
        if automaton is None or not row.catch_up(automaton, self.vocabulary):
            only_end_tokens(logits, index, self.end_ids)
            self.store.count("blocked_rows")
            return
        masked = sum(mask_tokens(logits, index, ids) for ids in self.masks.of(row.rule, automaton, row.state))
        self.store.count("guarded_rows")
        self.store.count("masked_tokens", masked)
        self.store.count(f"masked_tokens:{row.rule.slot}", masked)
