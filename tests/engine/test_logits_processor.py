"""The logits processor by itself, driven with vLLM's real batch updates and contexts."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from guard.classifiers.automaton import Automaton

pytest.importorskip("vllm")

from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from guard.engine.constraints import ConstraintSlots
from guard.engine.logits import GuardLogitsProcessor
from tests.engine.masking import NEGATIVE_INFINITY, PROMPT, Masking, guarded, masked, update

pytestmark = pytest.mark.usefixtures("empty_batch")


def oracle(tokenizer: PreTrainedTokenizerFast, automaton: Automaton, outputs: list[int]) -> set[int]:
    before = automaton.occurrences(str(tokenizer.decode(outputs, skip_special_tokens=True)))
    return {
        token
        for token in range(len(tokenizer))
        if automaton.occurrences(str(tokenizer.decode([*outputs, token], skip_special_tokens=True))) - before
    }


def test_masks_exactly_the_tokens_that_complete_a_forbidden_string(
    processor: GuardLogitsProcessor, automaton: Automaton, tokenizer: PreTrainedTokenizerFast
) -> None:
    outputs = tokenizer("The author is Jaime Vas")["input_ids"]
    processor.update_state(update([(0, guarded(automaton), PROMPT, outputs)]))
    expected = oracle(tokenizer, automaton, outputs)
    assert expected
    assert masked(processor) == [expected]


def test_greedy_cannot_be_talked_round_by_a_high_logit(
    processor: GuardLogitsProcessor, automaton: Automaton, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert processor.is_argmax_invariant() is False
    outputs = tokenizer("Jaime Vas")["input_ids"]
    processor.update_state(update([(0, guarded(automaton), PROMPT, outputs)]))
    token = min(oracle(tokenizer, automaton, outputs))
    logits = torch.zeros(1, processor.vocabulary.size)
    logits[0, token] = 1e9
    assert int(processor.apply(logits).argmax()) != token


def test_an_exempt_string_may_be_completed(
    processor: GuardLogitsProcessor, automaton: Automaton, tokenizer: PreTrainedTokenizerFast
) -> None:
    outputs = tokenizer("Jaime Vas")["input_ids"]
    index = automaton.patterns.index("jaime vasquez")
    processor.update_state(update([(0, guarded(automaton, exempt=(index,)), PROMPT, outputs)]))
    assert masked(processor) == [set()]


def test_a_plan_without_constraint_leaves_the_row_bitwise_untouched(processor: GuardLogitsProcessor) -> None:
    processor.update_state(update([(0, guarded(None), PROMPT, [])]))
    logits = torch.randn(1, processor.vocabulary.size)
    logits[0, 7] = float("nan")
    before = logits.clone()
    assert torch.equal(processor.apply(logits).view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("extra", [None, {}, {"guard": "forged.ticket"}, {"guard": 7}])
def test_without_a_valid_ticket_only_the_end_token_is_left(processor: GuardLogitsProcessor, extra: Any) -> None:
    processor.update_state(update([(0, SamplingParams(extra_args=extra), PROMPT, [])]))
    everything = set(range(processor.vocabulary.size))
    assert masked(processor) == [everything - set(processor.vocabulary.eos_ids)]


def test_before_the_processor_is_connected_nothing_may_be_said(masking: Masking) -> None:
    fresh = GuardLogitsProcessor(masking.config, torch.device("cpu"), False)
    fresh.update_state(update([(0, guarded(None), PROMPT, [])]))
    assert len(masked(fresh)[0]) == fresh.vocabulary.size - 1


def test_an_automaton_that_is_not_resident_leaves_only_the_end_token(processor: GuardLogitsProcessor) -> None:
    missing = Automaton.compile(["never loaded"], processor.vocabulary)
    processor.update_state(update([(0, guarded(missing), PROMPT, [])]))
    assert len(masked(processor)[0]) == processor.vocabulary.size - 1


def test_an_unfilled_placeholder_leaves_only_the_end_token_until_it_is_filled(
    processor: GuardLogitsProcessor, automaton: Automaton, tokenizer: PreTrainedTokenizerFast
) -> None:
    outputs = tokenizer("Jaime Vas")["input_ids"]
    live = [*outputs[:-1], -1]
    processor.update_state(update([(0, guarded(automaton), PROMPT, live)]))
    assert len(masked(processor)[0]) == processor.vocabulary.size - 1
    live[-1] = outputs[-1]
    assert masked(processor) == [oracle(tokenizer, automaton, outputs)]


def test_state_follows_the_live_list_and_is_rebuilt_after_preemption(
    processor: GuardLogitsProcessor, automaton: Automaton, tokenizer: PreTrainedTokenizerFast
) -> None:
    outputs = tokenizer("We met Jaime Vas")["input_ids"]
    live: list[int] = []
    processor.update_state(update([(0, guarded(automaton), PROMPT, live)]))
    for token in outputs:
        masked(processor)
        live.append(token)
    incremental = masked(processor)
    processor.update_state(update(removed=[0]))
    processor.update_state(update([(0, guarded(automaton), PROMPT, list(outputs))]))
    assert masked(processor) == incremental == [oracle(tokenizer, automaton, outputs)]


def test_a_row_emptied_by_an_allow_list_may_end(
    processor: GuardLogitsProcessor, automaton: Automaton, tokenizer: PreTrainedTokenizerFast
) -> None:
    outputs = tokenizer("Jaime Vas")["input_ids"]
    processor.update_state(update([(0, guarded(automaton), PROMPT, outputs)]))
    logits = torch.full((1, processor.vocabulary.size), NEGATIVE_INFINITY)
    logits[0, sorted(oracle(tokenizer, automaton, outputs))] = 1.0
    processor.apply(logits)
    assert torch.nonzero(logits[0] > NEGATIVE_INFINITY).flatten().tolist() == list(processor.vocabulary.eos_ids)


def test_a_guarded_row_of_nan_may_end(processor: GuardLogitsProcessor, automaton: Automaton) -> None:
    processor.update_state(update([(0, guarded(automaton), PROMPT, [])]))
    logits = torch.full((2, processor.vocabulary.size), float("nan"))
    processor.apply(logits)
    assert int(logits[0].argmax()) == processor.vocabulary.eos_ids[0]
    assert bool(torch.isnan(logits[1]).all())


def test_a_start_inside_the_prompt_lets_a_match_begin_there(
    processor: GuardLogitsProcessor, automaton: Automaton, tokenizer: PreTrainedTokenizerFast
) -> None:
    tail = tokenizer("Jaime Vas")["input_ids"]
    for start, expected in ((len(PROMPT), oracle(tokenizer, automaton, tail)), (len(PROMPT) + len(tail), set())):
        processor.update_state(update([(0, guarded(automaton, start=start), PROMPT + tail, [])]))
        assert masked(processor) == [expected]


def test_random_batch_changes_never_mask_for_a_neighbour(
    processor: GuardLogitsProcessor, automaton: Automaton, tokenizer: PreTrainedTokenizerFast
) -> None:
    rng = random.Random(5)
    texts = ["Jaime Vas", "Hina Am", "Shale St", "nothing here", "Jaime"]
    outputs = {text: tokenizer(text)["input_ids"] for text in texts}
    expected = {text: oracle(tokenizer, automaton, ids) for text, ids in outputs.items()}
    batch: dict[int, tuple[str, bool]] = {}
    for _ in range(300):
        removed = [i for i in sorted(batch) if rng.random() < 0.2]
        for index in removed:
            del batch[index]
        added = []
        for index in rng.sample(range(6), 2):
            choice = (rng.choice(texts), rng.random() < 0.6)
            batch[index] = choice
            params = guarded(automaton if choice[1] else None)
            added.append((index, params, PROMPT, list(outputs[choice[0]])))
        moved = []
        for _ in range(2):
            source, target = rng.sample(range(6), 2)
            if source not in batch:
                continue
            swap = target in batch and rng.random() < 0.5
            moved.append((source, target, MoveDirectionality.SWAP if swap else MoveDirectionality.UNIDIRECTIONAL))
            held, other = batch.pop(source), batch.pop(target, None)
            batch[target] = held
            if swap and other is not None:
                batch[source] = other
        processor.update_state(update(added, removed, moved, size=6))
        want = [expected[batch[i][0]] if i in batch and batch[i][1] else set() for i in range(6)]
        assert masked(processor, rows=6) == want


def test_masked_tokens_are_counted_by_slot(
    processor: GuardLogitsProcessor, slots: ConstraintSlots, automaton: Automaton, tokenizer: PreTrainedTokenizerFast
) -> None:
    key = f"masked_tokens:{slots.slot_of(automaton.digest)}"
    before = slots.counters().get(key, 0)
    processor.update_state(update([(0, guarded(automaton), PROMPT, tokenizer("Jaime Vas")["input_ids"])]))
    count = len(masked(processor)[0])
    assert slots.counters()[key] == before + count > before
