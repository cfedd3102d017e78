"""A model to fit for, with its tokenizer and fingerprint, and the progress bar of a fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from guard.errors import ConfigurationError
from guard.fit.hooks import decoder_layers
from guard.interventions.fit_config import ModelDtype
from guard.packs.fingerprint import model_fingerprint
from guard.site import Site, parse_sites


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A transformers model with frozen weights."""

    model: Any
    tokenizer: Any
    fingerprint: str

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    def sites(self, text: str) -> tuple[Site, ...]:
        """The sites that `text` names in this model, in forward order, at least one. Raises ConfigurationError."""
        found = parse_sites(text, len(decoder_layers(self.model)))
        if not found:
            raise ConfigurationError("a fit needs at least one site")
        return found


def load_model(folder: Path, *, device: str = "cpu", dtype: ModelDtype = "float32") -> LoadedModel:
    """Load a model folder. Raises ConfigurationError or PackError."""
    fingerprint = model_fingerprint(folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - takes seconds

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        model = model.to(device).eval().requires_grad_(False)
    except (OSError, ValueError, RuntimeError) as exc:
        raise ConfigurationError(f"{folder.name}: not a model that transformers can load on {device}") from exc
    return LoadedModel(model, tokenizer, fingerprint)


@contextmanager
def progress(description: str, total: int, *, show: bool) -> Iterator[Callable[[], object]]:
    """A progress bar of `total` steps; the value is called after each step."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, disable=not show, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)
