"""Hidden states of forget and retain texts at the sites of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.activations import collect, encode
from guard.fit.concept_rows import ConceptTexts
from guard.fit.loaded_model import progress
from guard.interventions.fit_config import BATCH, MAX_LENGTH, Pooling
from guard.site import Site


@dataclass(frozen=True, slots=True)
class ConceptStates:
    """States [N, d] of the texts of each part at one site, float32 on the CPU, text after text; `*_lengths` say how
    many rows each text has."""

    forget: Tensor
    retain: Tensor
    behaviour: Tensor
    held_out_forget: Tensor
    held_out_retain: Tensor
    forget_lengths: tuple[int, ...]
    retain_lengths: tuple[int, ...]
    held_out_forget_lengths: tuple[int, ...]
    held_out_retain_lengths: tuple[int, ...]

    @property
    def parts(self) -> dict[str, Tensor]:
        """States of forget and retain texts by the names of a report, those that are there."""
        named = {
            "forget": self.forget, "retain": self.retain, "held_out_forget": self.held_out_forget,
            "held_out_retain": self.held_out_retain,
        }
        return {name: states for name, states in named.items() if len(states)}

    @property
    def both(self) -> Tensor:
        """Forget and retain states of the fit, for an autoencoder."""
        return torch.cat([self.forget, self.retain])

    @property
    def held_out_both(self) -> Tensor:
        """The same, held out; those of the fit when nothing is held out."""
        held = torch.cat([self.held_out_forget, self.held_out_retain])
        return held if len(held) else self.both


def collect_concept_states(
    model: Any, tokenizer: Any, texts: ConceptTexts, sites: Sequence[Site], *, pooling: Pooling = "tokens",
    batch: int = BATCH, max_length: int = MAX_LENGTH, show_progress: bool = True,
) -> dict[Site, ConceptStates]:
    """States of all parts at `sites`. The first token of a text, whose state is that of any text's first token, is left
    out unless it is alone. Raises ConfigurationError when there is no site, or a site that the model lacks."""
    if not sites:
        raise ConfigurationError("a concept fit needs at least one site")
    parts = {
        "forget": texts.forget, "retain": texts.retain, "behaviour": texts.behaviour,
        "held_out_forget": texts.held_out_forget, "held_out_retain": texts.held_out_retain,
    }
    found: dict[str, tuple[dict[Site, Tensor], tuple[int, ...]]] = {}
    total = sum(-(-len(part) // batch) for part in parts.values())
    with progress("reading activations", total, show=show_progress) as advance:
        for name, part in parts.items():
            found[name] = token_states(
                model, tokenizer, part, sites, pooling=pooling, batch=batch, max_length=max_length,
                advance=advance,
            )
    return {
        site: ConceptStates(
            forget=found["forget"][0][site], retain=found["retain"][0][site], behaviour=found["behaviour"][0][site],
            held_out_forget=found["held_out_forget"][0][site], held_out_retain=found["held_out_retain"][0][site],
            forget_lengths=found["forget"][1], retain_lengths=found["retain"][1],
            held_out_forget_lengths=found["held_out_forget"][1], held_out_retain_lengths=found["held_out_retain"][1],
        )
        for site in sites
    }


def token_states(
    model: Any, tokenizer: Any, texts: Sequence[str], sites: Sequence[Site], *, pooling: Pooling = "tokens",
    batch: int = BATCH, max_length: int = MAX_LENGTH, advance: Any = lambda: None,
) -> tuple[dict[Site, Tensor], tuple[int, ...]]:
    """States [N, d] of `texts` and the number of rows of each text; first tokens are left out, see above."""
    if not texts:
        width = int(model.get_input_embeddings().weight.shape[-1])
        return {site: torch.empty(0, width) for site in sites}, ()
    lengths = [len(text.ids) for text in encode(tokenizer, texts, max_length=max_length)]
    states = collect(
        model, tokenizer, texts, sites, pooling="tokens" if pooling == "mean" else pooling, batch=batch,
        max_length=max_length, advance=advance,
    )
    if pooling == "last":
        return states, (1,) * len(texts)
    kept = torch.cat([torch.arange(length) >= min(1, length - 1) for length in lengths])
    rows = tuple(max(1, length - 1) for length in lengths)
    states = {site: value[kept] for site, value in states.items()}
    if pooling == "tokens":
        return states, rows
    means = {site: torch.stack([part.mean(dim=0) for part in value.split(rows)]) for site, value in states.items()}
    return means, (1,) * len(texts)
