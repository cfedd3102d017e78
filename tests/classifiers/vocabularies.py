"""Tokenizers of the three kinds that the constraint must handle."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from guard.demo.corpus import training_examples
from guard.demo.train import train_tokenizer


@lru_cache(maxsize=3)
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """`bundled` (byte-level BPE, 4,096 tokens), `gpt2` (skips when its files are absent) or `sentencepiece`."""
    if kind == "bundled":
        return train_tokenizer(training_examples("full"))
    return _gpt2() if kind == "gpt2" else _sentence_piece()


def _gpt2() -> PreTrainedTokenizerFast:
    folder = Path(os.environ.get("GUARD_TEST_GPT2", Path(__file__).parents[3] / "shared/data/models/gpt2-tokenizer"))
    if not (folder / "vocab.json").exists():
        pytest.skip("the files of the GPT-2 tokenizer are not here; name their folder in GUARD_TEST_GPT2")
    model = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return PreTrainedTokenizerFast(tokenizer_object=model._tokenizer, eos_token="<|endoftext|>")


def _sentence_piece() -> PreTrainedTokenizerFast:
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    texts = [e.answer for e in training_examples("full")[:1500]] + ["José café Zoë naïve 東京 Москва"] * 20
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1500, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    merges = [tuple(merge) for merge in learned["merges"]]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    model.normalizer = normalizers.Replace(" ", "\u2581")
    model.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
