"""A random Llama small enough to start in seconds, with the bundled model's tokenizer; made by `build`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from guard.demo.corpus import training_examples
from guard.demo.train import VOCABULARY, train_tokenizer


def build(folder: Path) -> None:
    """Save model and tokenizer into `folder`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=512, bos_token_id=None, eos_token_id=1,
        pad_token_id=0, tie_word_embeddings=True, initializer_range=0.2,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    train_tokenizer(training_examples("full")).save_pretrained(folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
