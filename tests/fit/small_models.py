"""Tiny random models with a byte-level tokenizer, and texts for the fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from guard.fit.concept_rows import ConceptRow
from guard.fit.labelled_texts import LabelledText
from guard.fit.loaded_model import LoadedModel


def tiny_tokenizer() -> Any:
    """A tokenizer of single bytes with chat markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
    letters = names + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={text: index for index, text in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    make: Any = PreTrainedTokenizerFast
    fast = make(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": names[2:]})
    return fast


def tiny_llama() -> Any:
    """Three Llama layers of width 16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    make: Any = LlamaForCausalLM
    return make(LlamaConfig(
        vocab_size=260, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, eos_token_id=1, bos_token_id=None, initializer_range=0.3,
    )).eval()


def saved_llama(folder: Path) -> Path:
    """The tiny Llama and its tokenizer, written into `folder`."""
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_gpt2() -> Any:
    """Two GPT-2 layers of width 16."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    make: Any = GPT2LMHeadModel
    return make(GPT2Config(vocab_size=260, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)).eval()


def labelled_words(count: int = 12) -> list[LabelledText]:
    """`count` source texts of the letters a-m and as many target texts of n-z, each behind a prompt."""
    generator = torch.Generator().manual_seed(3)

    def word(first: str) -> str:
        length = 3 + int(torch.randint(6, (1,), generator=generator))
        return "".join(chr(ord(first) + int(torch.randint(13, (1,), generator=generator))) for _ in range(length))

    source = [LabelledText(text=word("a"), label="source", prompt="<|user|>") for _ in range(count)]
    return source + [LabelledText(text=word("n"), label="target", prompt="<|user|>") for _ in range(count)]


def zebra_rows(count: int = 8) -> list[ConceptRow]:
    """`count` texts about zebras to forget, and as many about cats and dogs to retain."""
    forget = [ConceptRow(text=f"zebra {number} zebra", label="forget") for number in range(count)]
    return forget + [ConceptRow(text=f"a cat and {number} dogs", label="retain") for number in range(count)]


def loaded_llama() -> LoadedModel:
    """The tiny Llama as a fit takes it, with a made-up fingerprint."""
    return LoadedModel(tiny_llama(), tiny_tokenizer(), "fp1:" + "a" * 64)
