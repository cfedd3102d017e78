"""A transformers model whose prompt embeddings are corrupted exactly as the server corrupts them, and its scores.

Positions come from the same decoder, router and corruption function that serve requests: `PromptDecoder` gives the
token ranges, `kernels.route.fill` the rows, `kernels.corrupt.corrupt` the noise, at the output of the embedding layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guard.classifiers.spans import PromptDecoder
from guard.errors import ConfigurationError
from guard.interventions.eco import EcoConfig, Scope
from guard.kernels.corrupt import CorruptionTable, corrupt
from guard.kernels.route import RouteTable, coalesce, fill

_SLOT = 1


@dataclass(frozen=True, slots=True)
class Wording:
    """One wording of a question with the text to score it against. `terms` are strings that name the target."""

    question: str
    answer: str
    terms: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()  # character ranges in `question`


@dataclass(frozen=True, slots=True)
class EncodedWording:
    """Token ids of prompt and answer, and the prompt positions to corrupt."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]
    text: str


class CorruptedModel:
    """Scores wordings under corruption. Not thread-safe: it holds a hook on the model's embedding layer."""

    def __init__(self, model: Any, tokenizer: Any, *, batch: int = 32) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._decoder = PromptDecoder(tokenizer)
        self._batch = batch
        self._device = model.get_input_embeddings().weight.device
        self._armed: tuple[Tensor, Tensor, CorruptionTable] | None = None

    def encode(self, wording: Wording, scope: Scope) -> EncodedWording:
        """Render one question as the server would and find the positions that `scope` corrupts."""
        prompt = self._prompt_ids(wording.question)
        decoded = self._decoder.decode(prompt)
        ranges: Sequence[tuple[int, int]] = ()
        if scope == "spans":
            start, end = self._decoder.last_turn(decoded)
            shift = decoded.text.find(wording.question, start)
            spans = [(shift + a, shift + b) for a, b in wording.spans] if shift >= 0 else []
            folded = decoded.text.casefold()
            # folding that changes the length would shift every offset behind it
            if len(folded) == len(decoded.text):
                spans += [span for term in wording.terms for span in _occurrences(folded, term.casefold(), start, end)]
            ranges = self._decoder.token_ranges(decoded, spans)
            ranges = ranges or self._decoder.token_ranges(decoded, ((start, end),))
        ranges = ranges or self._decoder.ordinary_ranges(decoded)
        answer = self._tokenizer(wording.answer, add_special_tokens=False)["input_ids"]
        if self._tokenizer.eos_token_id is not None:
            answer = [*answer, self._tokenizer.eos_token_id]
        return EncodedWording(tuple(prompt), tuple(answer), coalesce(ranges, len(prompt)), wording.answer)

    @torch.inference_mode()
    def answer_log_probabilities(self, rows: Sequence[EncodedWording], config: EcoConfig, seed: int) -> list[float]:
        """Mean log-probability per token (nats, <= 0) of each answer, end token included, after its prompt."""
        scores = [0.0] * len(rows)
        with self._hooked():
            for batch in self._batches(rows):
                width = max(len(rows[i].prompt) + len(rows[i].answer) for i in batch)
                ids = torch.zeros(len(batch), width, dtype=torch.int64, device=self._device)
                mask = torch.zeros_like(ids)
                for line, i in enumerate(batch):
                    joined = rows[i].prompt + rows[i].answer
                    ids[line, : len(joined)] = torch.tensor(joined)
                    mask[line, : len(joined)] = 1
                positions = torch.arange(width, device=self._device).expand(len(batch), width)
                self._arm([rows[i] for i in batch], positions, config, seed)
                logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
                token_scores = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
                for line, i in enumerate(batch):
                    first = len(rows[i].prompt) - 1
                    scores[i] = float(token_scores[line, first : first + len(rows[i].answer)].mean())
        return scores

    @torch.inference_mode()
    def greedy_answers(
        self, rows: Sequence[EncodedWording], config: EcoConfig, seed: int, max_new_tokens: int = 128,
    ) -> list[str]:
        """Greedy answers after the corrupted prompts; generated tokens are never corrupted."""
        texts = [""] * len(rows)
        pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else 0
        with self._hooked():
            for batch in self._batches(rows):
                width = max(len(rows[i].prompt) for i in batch)
                ids = torch.full((len(batch), width), pad, dtype=torch.int64, device=self._device)
                mask = torch.zeros_like(ids)
                for line, i in enumerate(batch):
                    ids[line, width - len(rows[i].prompt) :] = torch.tensor(rows[i].prompt)
                    mask[line, width - len(rows[i].prompt) :] = 1
                # padding on the left gets negative positions, which are in no range
                positions = torch.arange(width, device=self._device)[None] - (width - mask.sum(1, keepdim=True))
                self._arm([rows[i] for i in batch], positions, config, seed)
                output = self._model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False,
                    pad_token_id=pad,
                )
                decoded = self._tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
                for i, text in zip(batch, decoded, strict=True):
                    texts[i] = text.strip()
        return texts

    def _prompt_ids(self, question: str) -> list[int]:
        if self._tokenizer.chat_template is None:
            text = f"Question: {question}\nAnswer: "
            return [int(token) for token in self._tokenizer(text)["input_ids"]]
        turn = [{"role": "user", "content": question}]
        text = self._tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        # the template already holds the special tokens
        return [int(token) for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _batches(self, rows: Sequence[EncodedWording]) -> Iterator[list[int]]:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].answer))
        for start in range(0, len(order), self._batch):
            yield order[start : start + self._batch]

    def _arm(self, rows: Sequence[EncodedWording], positions: Tensor, config: EcoConfig, seed: int) -> None:
        """Corrupt the next call of the embedding layer: `rows` padded to positions [B, T]."""
        count, width = positions.shape
        table = CorruptionTable.empty(_SLOT + 1, self._device)
        table.set(_SLOT, kind=config.kind, dims=config.dims, rho=config.rho, seed=seed)
        routes = RouteTable.empty(count, self._device)
        for index, row in enumerate(rows):
            routes.set(index, slot=_SLOT, prompt_length=len(row.prompt), ranges=row.ranges)
        token_slot = torch.zeros(count * width, dtype=torch.int32, device=self._device)
        token_position = torch.zeros(count * width, dtype=torch.int64, device=self._device)
        boundaries = torch.arange(count + 1, dtype=torch.int32, device=self._device) * width
        owners = torch.arange(count, dtype=torch.int32, device=self._device)
        fill(
            token_slot, token_position, routes, boundaries, positions.reshape(-1), request_slots=owners,
            num_padded=count * width,
        )
        self._armed = token_slot, token_position, table

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        handle = self._model.get_input_embeddings().register_forward_hook(self._corrupt_output)
        try:
            yield
        finally:
            handle.remove()
            self._armed = None

    def _corrupt_output(self, module: Any, inputs: Any, output: Tensor) -> Tensor:
        if self._armed is None:
            return output
        token_slot, token_position, table = self._armed
        # one prompt pass per batch; decode steps find nothing armed
        self._armed = None
        flat = output.clone().flatten(0, 1)
        if flat.shape[0] != token_slot.shape[0]:
            raise ConfigurationError(
                f"the model embedded {flat.shape[0]} tokens where {token_slot.shape[0]} were given; "
                "this model's embedding layer cannot be corrupted by a hook"
            )
        corrupt(flat, token_slot, token_position, table)
        return flat.view(output.shape)


def _occurrences(text: str, term: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    position = text.find(term, start, end) if term else -1
    while position >= 0:
        yield position, position + len(term)
        position = text.find(term, position + len(term), end)
