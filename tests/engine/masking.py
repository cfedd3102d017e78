"""A logits processor with its constraint slots, and vLLM's batch updates for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from vllm.config import ModelConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.interface import AddedRequest, BatchUpdate, MovedRequest

from guard.classifiers.automaton import Automaton
from guard.demo.corpus import training_examples
from guard.demo.train import train_tokenizer
from guard.engine.constraints import ConstraintSlots
from guard.engine.logits import GuardLogitsProcessor
from guard.engine.tickets import VerifiedTickets
from guard.plan import Constraint, OpenedAnswer, Plan
from guard.ticket import create_key, read_key, sign

PATTERNS = ["Jaime Vasquez", "Hina Ameen", "Shale Stories"]
PROMPT = [3, 17, 42, 4]
NEGATIVE_INFINITY = float("-inf")


class Masking:
    """A connected processor of the V1 runner, the configuration of its model, and a resident automaton."""

    def __init__(self, folder: Path) -> None:
        create_key()
        self.tokenizer: PreTrainedTokenizerFast = train_tokenizer(training_examples("full"))
        self.tokenizer.save_pretrained(folder)
        shape = LlamaConfig(
            vocab_size=len(self.tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
        )
        LlamaForCausalLM(shape).save_pretrained(folder)
        self.config = VllmConfig(model_config=ModelConfig(model=str(folder), dtype="float32"))
        self.processor = GuardLogitsProcessor(self.config, torch.device("cpu"), False)
        self.slots = self.processor.connect(VerifiedTickets(read_key()), 8, None)
        self.automaton = Automaton.compile(PATTERNS, self.processor.vocabulary)
        load(self.slots, self.automaton, folder)


def load(slots: ConstraintSlots, automaton: Automaton, folder: Path) -> int:
    """Save an automaton, stage it, wait until it is read, and commit it; its slot."""
    path = folder / f"{automaton.digest}.safetensors"
    automaton.save(path)
    slots.stage(path, automaton.digest)
    wait(slots, automaton.digest)
    return slots.commit(automaton.digest)


def wait(slots: ConstraintSlots, digest: str) -> None:
    """Wait until a staged file is read."""
    deadline_s = time.monotonic() + 30
    while slots.staged(digest) == "loading" and time.monotonic() < deadline_s:
        time.sleep(0.001)


def guarded(
    automaton: Automaton | None, exempt: tuple[int, ...] = (), start: int = len(PROMPT), wordings: tuple[str, ...] = ()
) -> SamplingParams:
    """Sampling params whose ticket has a constraint of `automaton`, or none, and the opening `wordings`, if any."""
    constraint = None if automaton is None else Constraint(digest=automaton.digest, start=start, exempt=exempt)
    plan = Plan(tenant_index=0, policy_version="v", prompt_length=len(PROMPT), constraint=constraint)
    if wordings:
        plan = plan.model_copy(update={"opening": OpenedAnswer(wordings=wordings, start=len(PROMPT))})
    ticket = sign(plan, "salt", PROMPT, read_key(), now_s=time.time())
    return SamplingParams(extra_args={"guard": ticket})


def update(
    added: Sequence[AddedRequest] = (), removed: Sequence[int] = (), moved: Sequence[MovedRequest] = (), size: int = 8
) -> BatchUpdate:
    """A batch update of vLLM's V1 runner."""
    return BatchUpdate(batch_size=size, removed=removed, added=added, moved=moved)


def masked(processor: GuardLogitsProcessor, rows: int = 1) -> list[set[int]]:
    """The tokens that are masked in each row."""
    logits = torch.zeros(rows, processor.vocabulary.size)
    processor.apply(logits)
    return [set(torch.nonzero(row == NEGATIVE_INFINITY).flatten().tolist()) for row in logits]
