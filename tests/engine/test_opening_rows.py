"""The logits processor keeps answers to the wordings that their plan opens them with."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from guard.classifiers.automaton import Automaton

pytest.importorskip("vllm")

from guard.engine.logits import GuardLogitsProcessor
from tests.engine.masking import NEGATIVE_INFINITY, PROMPT, guarded, masked, update

pytestmark = pytest.mark.usefixtures("empty_batch")
WORDINGS = ("I have no information on", "I do not know")


def said_greedily(processor: GuardLogitsProcessor, outputs: list[int], scores: torch.Tensor, count: int) -> None:
    """Add `count` tokens to vLLM's live list of outputs, each the best that is not masked."""
    for _ in range(count):
        logits = scores.clone()[None]
        outputs.append(int(processor.apply(logits)[0].argmax()))


def test_an_answer_opens_with_one_of_its_wordings_and_then_goes_free(
    processor: GuardLogitsProcessor, tokenizer: PreTrainedTokenizerFast
) -> None:
    outputs: list[int] = []
    processor.update_state(update([(0, guarded(None, wordings=WORDINGS), PROMPT, outputs)]))
    torch.manual_seed(1)
    scores = torch.randn(processor.vocabulary.size)
    for _ in range(60):
        if tokenizer.decode(outputs) in WORDINGS:
            break
        said_greedily(processor, outputs, scores, 1)
    assert tokenizer.decode(outputs) in WORDINGS
    assert masked(processor) == [set()]


def test_the_model_chooses_between_wordings_by_its_own_scores(
    processor: GuardLogitsProcessor, tokenizer: PreTrainedTokenizerFast
) -> None:
    for wording in WORDINGS:
        outputs: list[int] = []
        processor.update_state(update([(0, guarded(None, wordings=WORDINGS), PROMPT, outputs)]))
        for token in tokenizer(wording)["input_ids"]:
            scores = torch.zeros(processor.vocabulary.size)
            scores[token] = 1.0
            said_greedily(processor, outputs, scores, 1)
        assert tokenizer.decode(outputs) == wording


def test_an_opening_that_began_before_a_roll_back_goes_on(
    processor: GuardLogitsProcessor, tokenizer: PreTrainedTokenizerFast
) -> None:
    begun = tokenizer("I have no")["input_ids"]
    outputs: list[int] = []
    processor.update_state(update([(0, guarded(None, wordings=WORDINGS), [*PROMPT, *begun], outputs)]))
    logits = torch.zeros(1, processor.vocabulary.size)
    kept = torch.nonzero(processor.apply(logits)[0] > NEGATIVE_INFINITY).flatten().tolist()
    assert kept
    assert all(" information on".startswith(str(tokenizer.decode([token]))) for token in kept)


def test_a_forbidden_string_inside_the_opening_stays_forbidden(
    processor: GuardLogitsProcessor, automaton: Automaton, tokenizer: PreTrainedTokenizerFast
) -> None:
    outputs = tokenizer("I know Jaime Vas")["input_ids"]
    wordings = ("I know Jaime Vasquez",)
    processor.update_state(update([(0, guarded(automaton, wordings=wordings), PROMPT, outputs)]))
    logits = torch.zeros(1, processor.vocabulary.size)
    kept = torch.nonzero(processor.apply(logits)[0] > NEGATIVE_INFINITY).flatten().tolist()
    assert all(tokenizer.decode([token]) != "quez" for token in kept)
