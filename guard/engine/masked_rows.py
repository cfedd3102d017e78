"""What the guard does to one row of logits, and how far the request's text has come (V1 runner)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

from guard.classifiers.automaton import START, Automaton, State
from guard.classifiers.opening_table import FREE, ROOT, OpeningTable
from guard.classifiers.vocabulary import Vocabulary
from guard.kernels.mask import BLOCKED

MASKS_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Rule:
    """What a request's ticket says about its tokens.

    Forbidden strings of `automaton` in constraint slot `slot` (BLOCKED: the request may only end; NOT_GUARDED: nothing
    is forbidden), and the `opening` of its answer. `digest` is what the request refers to in the constraint slots until
    it leaves, empty for nothing.
    """

    automaton: Automaton | None
    slot: int
    digest: str = ""
    start: int = 0
    exempt: frozenset[int] = frozenset()
    skip_special: bool = True
    opening: OpeningTable | None = None
    opening_start: int = 0

    @property
    def blocked(self) -> bool:
        """Whether the request may only end."""
        return self.slot == BLOCKED


FORBIDDEN = Rule(None, BLOCKED)


@dataclass(slots=True)
class Row:
    """A batch row of the V1 runner. `outputs` is vLLM's live list.

    `state` covers the first `position` tokens, `node` of the opening those before `opened`.
    """

    rule: Rule
    prompt: list[int]
    outputs: list[int]
    state: State = START
    position: int = 0
    node: int = ROOT
    opened: int = 0

    def catch_up(self, automaton: Automaton, vocabulary: Vocabulary) -> bool:
        """Advance to the last token. False when a token is still unknown (vLLM's placeholder -1)."""
        total = len(self.prompt) + len(self.outputs)
        if self.position > total:
            self.state, self.position = START, 0
        self.position = max(self.position, min(self.rule.start, total))
        while self.position < total:
            token = self._token(self.position)
            if token < 0:
                return False
            skip = self.position >= len(self.prompt) and self.rule.skip_special
            self.state = automaton.advance(self.state, token, vocabulary, skip_special=skip)
            self.position += 1
        return True

    def follow_opening(self, opening: OpeningTable) -> bool:
        """Bring `node` to the last token. False when a token is still unknown."""
        total = len(self.prompt) + len(self.outputs)
        if self.opened > total:
            self.node, self.opened = ROOT, 0
        self.opened = max(self.opened, min(self.rule.opening_start, total))
        while self.node != FREE and self.opened < total:
            token = self._token(self.opened)
            if token < 0:
                return False
            self.node = opening.step(self.node, token)
            self.opened += 1
        return True

    def _token(self, position: int) -> int:
        offset = position - len(self.prompt)
        return self.outputs[offset] if offset >= 0 else self.prompt[position]


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
