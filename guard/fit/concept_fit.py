"""The run of a concept fit, whatever the method: read the rows, split them, collect the model's states at the sites.

A method adds how the states become a report, a picture and a pack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from guard.fit.concept_rows import ConceptRow, ConceptTexts, read_concept_rows, rows_digest, split_texts
from guard.fit.concept_states import ConceptStates, collect_concept_states
from guard.fit.loaded_model import load_model
from guard.interventions.fit_config import ConceptConfig, ModelDtype, Pooling
from guard.packs.format import Pack
from guard.site import Site

Config = TypeVar("Config", bound=ConceptConfig)
GivenConfig = TypeVar("GivenConfig", bound=ConceptConfig, contravariant=True)


class StatesFit(Protocol[GivenConfig]):
    """A method: from the states of the texts to report, picture and pack in `out`. Raises GuardError."""

    def __call__(
        self, states: Mapping[Site, ConceptStates], texts: ConceptTexts, config: GivenConfig, *, out: Path,
        fingerprint: str, digest: str, licence: str,
    ) -> Pack: ...


@dataclass(frozen=True, slots=True)
class ConceptFit(Generic[Config]):
    """One method's fit; `pooling` says which states of a text a configuration asks for."""

    method: StatesFit[Config]
    pooling: Callable[[Config], Pooling] = lambda config: "tokens"

    def from_files(
        self, model: Path, data: Path, out: Path, config: Config, *, device: str = "cpu",
        dtype: ModelDtype = "float32", licence: str = "unknown", show_progress: bool = True,
    ) -> Pack:
        """Fit from files: model folder and JSON Lines of text/label. Raises GuardError."""
        rows = read_concept_rows(data)
        loaded = load_model(model, device=device, dtype=dtype)
        return self.from_rows(
            loaded.model, loaded.tokenizer, rows, loaded.sites(config.sites), config, out=out,
            fingerprint=loaded.fingerprint, licence=licence, show_progress=show_progress,
        )

    def from_rows(
        self, model: Any, tokenizer: Any, rows: Sequence[ConceptRow], sites: Sequence[Site], config: Config, *,
        out: Path, fingerprint: str, licence: str = "unknown", show_progress: bool = True,
    ) -> Pack:
        """Fit a loaded model and write report.json, report.png and the method's pack into `out`. Raises GuardError."""
        texts = split_texts(rows, config.held_out_share, config.seed)
        states = collect_concept_states(
            model, tokenizer, texts, sites, pooling=self.pooling(config), max_length=config.max_length,
            show_progress=show_progress,
        )
        return self.method(
            states, texts, config, out=out, fingerprint=fingerprint, digest=rows_digest(rows), licence=licence
        )
