"""Cost of the constraint on the host: build time and size, and the time of state + mask per request and step.

    python -m bench.constraint --tokenizer FOLDER_OR_ID --patterns 100000 --out constraint.json

Without a tokenizer a vocabulary of --vocabulary made-up tokens is used. Times are microseconds of one request and step:
the automaton advances by one token and the row of logits is masked and checked for being empty. Without the row
(`state_mask`) only the guard's own work is counted; `with_row_check` adds the scan of the row for something to sample.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guard.classifiers.automaton import START, Automaton
from guard.classifiers.vocabulary import Vocabulary
from guard.kernels.mask import mask_tokens, rescue_empty


def made_up_vocabulary(size: int, rng: random.Random) -> Vocabulary:
    """Bytes, then syllable words, half of them with a leading space, as large vocabularies have them."""
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "or", "us")]
    words = {bytes([byte]) for byte in range(256)}
    while len(words) < size - 1:
        word = "".join(rng.choices(syllables, k=rng.randint(1, 4)))
        words.add((" " + word if rng.random() < 0.5 else word).encode())
    return Vocabulary([None, *sorted(words)], frozenset({0}), (0,))


def made_up_patterns(count: int, vocabulary: Vocabulary, rng: random.Random) -> list[str]:
    """Names and titles of 2 to 4 words, put together from the vocabulary's own words."""
    words = [text.strip() for text in vocabulary.texts if len(text.strip()) >= 4 and text.isascii()]
    return [" ".join(rng.choices(words, k=rng.randint(2, 4))) for _ in range(count)]


def history(automaton: Automaton, vocabulary: Vocabulary, steps: int, rng: random.Random) -> list[int]:
    """Tokens of a text that keeps beginning forbidden strings and never finishes one."""
    by_text = dict(zip(vocabulary.texts, vocabulary.order.tolist(), strict=True))
    tokens: list[int] = []
    while len(tokens) < steps:
        words = rng.choice(automaton.patterns).split(" ")
        for word in words[:-1]:
            tokens += [by_text[t] for t in (f" {word}",) if t in by_text] or [
                by_text[t] for t in (" ", word) if t in by_text
            ]
    return tokens[:steps]


def step_times(automaton: Automaton, vocabulary: Vocabulary, tokens: list[int]) -> dict[str, dict[str, float]]:
    """Time every step of one request twice over: the masks of the first pass are not kept for the second."""
    logits = torch.zeros(1, vocabulary.size)
    end_ids = torch.tensor(vocabulary.eos_ids)
    shared = torch.from_numpy(automaton.shared(frozenset()).astype("int64"))
    state, own, whole = START, [], []
    for token in tokens:
        logits.zero_()
        began = time.perf_counter()
        state = automaton.advance(state, token, vocabulary, skip_special=True)
        ids = torch.from_numpy(automaton.begun(state.node, vocabulary, frozenset()).astype("int64"))
        mask_tokens(logits, 0, shared)
        mask_tokens(logits, 0, ids)
        own.append(time.perf_counter() - began)
        rescue_empty(logits, [0], end_ids)
        whole.append(time.perf_counter() - began)
    return {"state_mask_us": _percentiles(own), "with_row_check_us": _percentiles(whole)}


def measure(vocabulary: Vocabulary, patterns: int, steps: int, seed: int) -> dict[str, Any]:
    """Build and time; sizes in bytes, times as named."""
    rng = random.Random(seed)
    strings = made_up_patterns(patterns, vocabulary, rng)
    began = time.perf_counter()
    automaton = Automaton.compile(strings, vocabulary)
    build_s = time.perf_counter() - began
    return {
        "vocabulary": vocabulary.size, "patterns": len(automaton.patterns), "nodes": automaton.trie.nodes,
        "build_s": round(build_s, 3), "bytes": automaton.bytes, "threads": torch.get_num_threads(),
        "shared_tokens": len(automaton.shared(frozenset())), "ranges": len(automaton.arrays["entry_low"]),
        **step_times(automaton, vocabulary, history(automaton, vocabulary, steps, rng)),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    micro = np.array(seconds) * 1e6
    return {"p50": round(float(np.percentile(micro, 50)), 1), "p99": round(float(np.percentile(micro, 99)), 1)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="", help="folder or Hugging Face id; default: a made-up vocabulary")
    parser.add_argument("--vocabulary", type=int, default=128_000, help="size of the made-up vocabulary")
    parser.add_argument("--patterns", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    if options.tokenizer:
        from transformers import AutoTokenizer

        vocabulary = Vocabulary.from_tokenizer(AutoTokenizer.from_pretrained(options.tokenizer))
    else:
        vocabulary = made_up_vocabulary(options.vocabulary, random.Random(options.seed))
    report = json.dumps(measure(vocabulary, options.patterns, options.steps, options.seed), indent=2)
    print(report)
    if options.out:
        options.out.write_text(report + "\n")


if __name__ == "__main__":
    main()
