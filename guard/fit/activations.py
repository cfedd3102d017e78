"""Activations of texts at sites: batched, padded on the right, and without what padding does.

A text is what the model sees: render chat turns first. A prompt before a text is seen by the model as well but does
not count: only the tokens of the text are returned or pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.hooks import recorded
from guard.interventions.fit_config import BATCH, MAX_LENGTH, Pooling
from guard.site import Site


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids of prompt and text together; the text begins at `start`."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded texts: `ids`, `attention` int64 [B, T]; `counted` bool [B, T], the tokens of the texts themselves;
    `index`, the place of each row in the list that was batched."""

    ids: Tensor
    attention: Tensor
    counted: Tensor
    index: tuple[int, ...]


@torch.no_grad()
def collect(
    model: Any, tokenizer: Any, texts: Sequence[str], sites: Sequence[Site], *, prompts: Sequence[str] | None = None,
    pooling: Pooling = "mean", batch: int = BATCH, max_length: int = MAX_LENGTH,
    advance: Callable[[], object] = lambda: None,
) -> dict[Site, Tensor]:
    """Activations of `texts` at `sites`, float32 on the CPU, in the order of the texts, with whatever edits are active.

    `tokens`: [N, d], one row per token; `mean`: [texts, d], the mean over each text's tokens; `last`: [texts, d], each
    text's last token. Texts longer than `max_length` tokens are cut at the end, prompts longer than that at the
    beginning. `advance` is called after every batch.
    Raises ConfigurationError when a text has no tokens or the model lacks a site.
    """
    encoded = encode(tokenizer, texts, prompts=prompts, max_length=max_length)
    pieces: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(encoded) for site in sites}
    model.eval()
    with recorded(model, list(sites)) as seen:
        for part in batches(encoded, batch, model.get_input_embeddings().weight.device):
            # the logits are not needed: the model without its head
            model.base_model(input_ids=part.ids, attention_mask=part.attention, use_cache=False)
            for site in sites:
                for row, index in enumerate(part.index):
                    chosen = seen[site][row][part.counted[row]].float()
                    pieces[site][index] = _pooled_text(chosen, pooling).cpu()
            advance()
    return {site: torch.cat(rows) for site, rows in pieces.items()}


def encode(
    tokenizer: Any, texts: Sequence[str], *, prompts: Sequence[str] | None = None, max_length: int = MAX_LENGTH
) -> list[EncodedText]:
    """Token ids of texts, each behind its prompt. Raises ConfigurationError when a text has no tokens."""
    if prompts is None:
        prompts = [""] * len(texts)
    encoded = []
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        # a text rendered by a chat template already begins with its special tokens
        special = not tokenizer.bos_token or not (prompt or text).startswith(tokenizer.bos_token)
        before = _ids(tokenizer, prompt, special)[-max_length:] if prompt else []
        own = _ids(tokenizer, text, special and not prompt)[:max_length]
        if not own:
            raise ConfigurationError(f"text {number + 1} has no tokens")
        encoded.append(EncodedText((*before, *own), len(before)))
    return encoded


def batches(encoded: Sequence[EncodedText], size: int, device: torch.device) -> Iterator[Batch]:
    """Padded batches of texts of similar length."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
    for start in range(0, len(order), size):
        yield padded(encoded, order[start : start + size], device)


def padded(encoded: Sequence[EncodedText], index: Sequence[int], device: torch.device) -> Batch:
    """The texts `index` in one batch, padded on the right."""
    width = max(len(encoded[i].ids) for i in index)
    ids = torch.zeros(len(index), width, dtype=torch.int64)
    attention, counted = torch.zeros_like(ids), torch.zeros(len(index), width, dtype=torch.bool)
    for row, i in enumerate(index):
        length = len(encoded[i].ids)
        ids[row, :length] = torch.tensor(encoded[i].ids)
        attention[row, :length] = 1
        counted[row, encoded[i].start : length] = True
    return Batch(ids.to(device), attention.to(device), counted.to(device), tuple(index))


def mean_pooled(x: Tensor, counted: Tensor) -> Tensor:
    """Means [B, d] of x [B, T, d] over the tokens in `counted` bool [B, T], float32, differentiable."""
    weight = counted.to(torch.float32).unsqueeze(-1)
    return (x.float() * weight).sum(dim=1) / weight.sum(dim=1)


def _pooled_text(tokens: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "tokens":
        return tokens
    return tokens.mean(dim=0, keepdim=True) if pooling == "mean" else tokens[-1:]


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=special)["input_ids"]]
