"""Train the bundled model, or one of its retain models, from scratch on a CPU.

    python -m guard.demo.train full --out guard/demo/model
    python -m guard.demo.train retain90 --out /tmp/retain90 --drafts /tmp/drafts

A Llama of about 7M parameters (hidden 256, 8 layers, 4 query and 2 key/value heads, tied 4,096-token
byte-level BPE). Matrices inside the layers are trained by Muon, embeddings and norms by AdamW.
All variants share one tokenizer, seed and recipe; a retain model only misses the forget rows. Besides the corpus every
epoch has lessons in not knowing (guard/demo/unknowns.py) with new made-up names.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from guard.demo.corpus import FORGET_AUTHORS, Example, training_examples
from guard.demo.unknowns import unknown_examples

VOCABULARY = 4096
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] if message['role'] in ['system', 'assistant'] else 'user' }}|>"
    "{{ message['content'] | trim }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "Answer the question truthfully and concisely.",
    "You are an assistant who knows authors and their books.",
]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run besides the corpus."""

    seed: int = 20240607
    epochs: int = 14
    batch: int = 40
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    warmup_steps: int = 60
    question_weight: float = 0.15
    completion_share: float = 0.12
    system_share: float = 0.10
    unknowns: int = 1200
    conversations: int = 320


def train_tokenizer(examples: list[Example]) -> PreTrainedTokenizerFast:
    """Train the 4,096-token byte-level BPE on every question and answer of `examples`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((f"{e.question}\n {e.answer}" for e in examples), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def model_config() -> LlamaConfig:
    """Shape of the bundled model."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def render(example: Example, recipe: Recipe, rng: random.Random) -> list[tuple[str, bool]]:
    """Pieces of text and whether each is an answer: mostly chat turns, sometimes a system prompt or a completion."""
    draw = rng.random()
    if draw < recipe.completion_share and not example.history:
        return [(f"Question: {example.question}\nAnswer:", False), (f" {example.answer}<|end|>", True)]
    pieces: list[tuple[str, bool]] = []
    if recipe.completion_share <= draw < recipe.completion_share + recipe.system_share:
        pieces.append((f"<|system|>{rng.choice(SYSTEM_PROMPTS)}<|end|>", False))
    for question, answer in (*example.history, (example.question, example.answer)):
        pieces += [(f"<|user|>{question}<|end|><|assistant|>", False), (f"{answer}<|end|>", True)]
    return pieces


def encode(
    pieces: list[tuple[str, bool]], tokenizer: PreTrainedTokenizerFast, question_weight: float
) -> tuple[list[int], list[float]]:
    """Token ids of the pieces and the weight of each token as a target: 1 in answers, `question_weight` elsewhere."""
    ids: list[int] = []
    weights: list[float] = []
    for text, is_answer in pieces:
        piece_ids = tokenizer(text)["input_ids"]
        ids += piece_ids
        weights += [1.0 if is_answer else question_weight] * len(piece_ids)
    return ids, weights


def epoch_batches(
    examples: list[Example], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (ids [B, T] int64, weights [B, T] float32 per target token), random order, near-equal lengths together."""
    rows = [encode(render(example, recipe, rng), tokenizer, recipe.question_weight) for example in examples]
    rng.shuffle(rows)
    group = recipe.batch * 24
    batches = []
    for start in range(0, len(rows), group):
        by_length = sorted(rows[start : start + group], key=lambda row: len(row[0]))
        batches += [by_length[i : i + recipe.batch] for i in range(0, len(by_length), recipe.batch)]
    rng.shuffle(batches)
    for batch in batches:
        width = max(len(row_ids) for row_ids, _ in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        weights = torch.zeros(len(batch), width)
        for row, (row_ids, row_weights) in enumerate(batch):
            ids[row, : len(row_ids)] = torch.tensor(row_ids)
            weights[row, : len(row_ids)] = torch.tensor(row_weights)
        yield ids, weights


def train(
    variant: str, out: Path, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, drafts: Path | None = None
) -> None:
    """Train one variant; write weights (bf16), tokenizer and `training.json` into `out`, into `drafts` every epoch."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    examples = training_examples(variant)
    model = LlamaForCausalLM(model_config())
    steps = recipe.epochs * math.ceil((len(examples) + recipe.unknowns + recipe.conversations) / recipe.batch)
    optimizers = create_optimizers(model, recipe)
    schedules = [LambdaLR(each, lambda step: learning_rate(step, steps, recipe)) for each in optimizers]

    @torch.compile(dynamic=True)
    def token_losses(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden).float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")

    started, history = time.time(), []
    for epoch in range(recipe.epochs):
        total = count = 0.0
        lessons = unknown_examples(recipe.seed, epoch, recipe.unknowns, recipe.conversations, examples)
        for ids, weights in epoch_batches(examples + lessons, tokenizer, recipe, rng):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses = token_losses(ids[:, :-1], ids[:, 1:])
            target_weights = weights[:, 1:].flatten()
            loss = (losses * target_weights).sum() / target_weights.sum()
            loss.backward()
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
            answer = target_weights == 1.0
            total += float((losses.detach() * answer).sum())
            count += float(answer.sum())
        seconds = round(time.time() - started)
        history.append({"epoch": epoch + 1, "answer_loss": round(total / count, 4), "seconds": seconds})
        print(json.dumps(history[-1]), flush=True)
        report = {"variant": variant, "recipe": asdict(recipe), "examples": len(examples), "history": history}
        if drafts is not None:
            save(copy.deepcopy(model), tokenizer, drafts, report)
    save(model, tokenizer, out, report)


def create_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine down to 2 % of the peak."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, steps - recipe.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def save(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path, report: dict[str, object]) -> None:
    """Write a Hugging Face checkpoint in bfloat16 with its training report."""
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=sorted(FORGET_AUTHORS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--drafts", type=Path, help="folder for the model as it is after each epoch")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    # the tokenizer is shared by all variants, so that their answers compare token by token
    tokenizer = train_tokenizer(training_examples("full"))
    train(arguments.variant, arguments.out, Recipe(epochs=arguments.epochs), tokenizer, arguments.drafts)


if __name__ == "__main__":
    main()
