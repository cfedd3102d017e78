"""A chat model in transformers that goes on from given beginnings of its answer, for `bench/openings.py`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from guard.sentences import split

TOKENS = 40
BATCH = 40
SHRINK = 6


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation that ends with a user's turn; `answer` is "" where no single answer is right."""

    kind: str
    turns: tuple[str, ...]
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What followed a wording, which the text begins with; `choices` are the log-probabilities of its tokens."""

    text: str
    ended: bool
    opening_tokens: tuple[int, ...]
    choices: tuple[float, ...]


class Writer:
    """A chat model that goes on from given beginnings of its answer."""

    def __init__(self, folder: Path, whole: bool) -> None:
        self.whole = whole
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()

    @torch.inference_mode()
    def continuations(self, prompts: Sequence[Prompt], openings: Sequence[str]) -> list[list[Continuation]]:
        """For each opening one continuation a prompt; the prompts are read once for all openings."""
        written: list[list[Continuation]] = [[] for _ in openings]
        for start in range(0, len(prompts), BATCH):
            texts = [self._prompt_text(prompt) for prompt in prompts[start : start + BATCH]]
            encoded = self.tokenizer(
                texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
            )
            mask = encoded["attention_mask"]
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            read = self.model(
                input_ids=encoded["input_ids"], attention_mask=mask, position_ids=positions, logits_to_keep=1
            )
            for rows, opening in zip(written, openings, strict=True):
                cache = copy.deepcopy(read.past_key_values)
                rows += self._written(opening, mask, read.logits[:, -1:], cache)
        return written

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """What the model answers when it begins in its own way."""
        return [row.text for row in self.continuations(prompts, [""])[0]]

    def _prompt_text(self, prompt: Prompt) -> str:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(prompt.turns)]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _written(self, opening: str, mask: torch.Tensor, logits: torch.Tensor, cache: Any) -> list[Continuation]:
        opened: list[int] = self.tokenizer(opening, add_special_tokens=False)["input_ids"] if opening else []
        batch = mask.shape[0]
        lengths = mask.sum(-1)
        if opened:
            tokens = torch.tensor([opened] * batch)
            mask = torch.cat([mask, torch.ones(batch, len(opened), dtype=mask.dtype)], -1)
            positions = lengths[:, None] + torch.arange(len(opened))
            out = self.model(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache)
            every = torch.cat([logits, out.logits], 1).float().log_softmax(-1)
            choices = every[:, :-1].gather(-1, tokens[..., None]).squeeze(-1)
            logits, lengths = out.logits[:, -1:], lengths + len(opened)
        else:
            choices = torch.zeros(batch, 0)
        ids, ended = self._greedy(mask, lengths, logits, cache, opened)
        texts = [self.tokenizer.decode(opened + row, skip_special_tokens=True) for row in ids]
        return [
            Continuation(text, end, tuple(opened), tuple(row.tolist()))
            for text, end, row in zip(texts, ended, choices, strict=True)
        ]

    def _greedy(
        self, mask: torch.Tensor, lengths: torch.Tensor, logits: torch.Tensor, cache: Any, opened: list[int]
    ) -> tuple[list[list[int]], list[bool]]:
        ids: list[list[int]] = [[] for _ in range(mask.shape[0])]
        ended = [False] * mask.shape[0]
        active = list(range(mask.shape[0]))
        for step in range(TOKENS):
            following = logits[:, -1].argmax(-1)
            for place, row in enumerate(active):
                token = int(following[place])
                ended[row] = ended[row] or token == self.tokenizer.eos_token_id
                if not ended[row]:
                    ids[row].append(token)
            going = [place for place, row in enumerate(active) if not (ended[row] or self._enough(opened + ids[row]))]
            if not going:
                break
            if step % SHRINK == SHRINK - 1 and len(going) < len(active):
                kept = torch.tensor(going)
                cache.batch_select_indices(kept)
                mask, lengths, following = mask[kept], lengths[kept], following[kept]
                active = [active[place] for place in going]
            mask = torch.cat([mask, torch.ones(mask.shape[0], 1, dtype=mask.dtype)], -1)
            logits = self.model(
                input_ids=following[:, None], attention_mask=mask, position_ids=lengths[:, None], past_key_values=cache
            ).logits
            lengths = lengths + 1
        return ids, ended

    def _enough(self, ids: list[int]) -> bool:
        if self.whole:
            return False
        text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return len(first_sentence(text)) < len(text)


def first_sentence(text: str) -> str:
    """The first sentence of an answer."""
    return (split(text.strip()) or [""])[0].strip()
