"""What the steering fits (difference of means, Linear-AcT, LinEAS) share: data, activations, checkpoint and report.

All of them are judged alike, on held-out texts: how far the activations of source texts are from those of target texts,
before and after the edit, as the sum over channels of the squared Wasserstein-2 distance at every site.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.activations import EncodedText, collect, encode
from guard.fit.checkpoint import Checkpoint, fit_identity
from guard.fit.hooks import edits
from guard.fit.labelled_texts import LabelledText, read_labelled_texts, split_labelled, texts_digest
from guard.fit.loaded_model import LoadedModel, load_model
from guard.fit.steering_figure import draw_costs
from guard.fit.transport import paired, transport_cost
from guard.interventions.fit_config import ModelDtype, Pooling, SteeringConfig
from guard.interventions.method import Fit
from guard.kernels.edit_formula import EditRow
from guard.packs.edit_format import Origin
from guard.packs.format import Pack
from guard.site import Site

CHECKPOINT_FILE = "state.safetensors"
GivenConfig = TypeVar("GivenConfig", bound=SteeringConfig, contravariant=True)


class TextsFit(Protocol[GivenConfig]):
    """A method: from a loaded model and texts to report, picture and pack in `out`. Raises GuardError."""

    def __call__(
        self, loaded: LoadedModel, texts: Sequence[LabelledText], config: GivenConfig, *, out: Path, licence: str,
        show_progress: bool,
    ) -> Pack: ...


def from_files(fit: TextsFit[Any]) -> Fit:
    """The same fit from a model folder and JSON Lines of `text` and `label`."""

    def run(
        model: Path, data: Path, out: Path, config: Any, *, device: str = "cpu", dtype: ModelDtype = "float32",
        licence: str = "unknown", show_progress: bool = True,
    ) -> Pack:
        texts = read_labelled_texts(data)
        loaded = load_model(model, device=device, dtype=dtype)
        return fit(loaded, texts, config, out=out, licence=licence, show_progress=show_progress)

    return run


class SteeringFit:
    """One fit: model, sites, split texts and output folder. Raises ConfigurationError for data that cannot be used."""

    def __init__(
        self, loaded: LoadedModel, texts: Sequence[LabelledText], config: SteeringConfig, *, method: str, out: Path,
        show_progress: bool,
    ) -> None:
        self.loaded, self.config, self.method, self.out = loaded, config, method, out
        self.sites = loaded.sites(config.sites)
        self.texts = split_labelled(texts, config.held_out_share, config.seed)
        self.digest = texts_digest(texts)
        self.show_progress = show_progress
        self.checkpoint = Checkpoint(
            out / CHECKPOINT_FILE,
            fit_identity(method, loaded.fingerprint, self.digest, config.model_dump(mode="json")),
        )
        loaded.model.eval().requires_grad_(False)

    def states(
        self, texts: Sequence[LabelledText], sites: Sequence[Site] | None = None, *, pooling: Pooling = "mean",
        advance: Callable[[], object] = lambda: None,
    ) -> dict[Site, Tensor]:
        """Activations of texts at `sites` (all of the fit by default), with whatever edits are active."""
        return collect(
            self.loaded.model, self.loaded.tokenizer, [row.text for row in texts], sites or self.sites,
            prompts=[row.prompt for row in texts], pooling=pooling, batch=self.config.batch,
            max_length=self.config.max_length, advance=advance,
        )

    def encoded(self, texts: Sequence[LabelledText]) -> list[EncodedText]:
        """Token ids of texts behind their prompts."""
        return encode(
            self.loaded.tokenizer, [row.text for row in texts], prompts=[row.prompt for row in texts],
            max_length=self.config.max_length,
        )

    def report(
        self, rows: Mapping[Site, EditRow], *, losses: Sequence[float] = (), **findings: Any
    ) -> dict[str, Any]:
        """Measure `rows` at strength 1, write report.json and report.png, and return what goes into the pack."""
        held_out = bool(self.texts.held_out_source)
        before, after = self._costs(rows)
        brief = {
            "method": self.method, "measured_on": "held-out texts" if held_out else "the texts of the fit",
            "cost_before": round(sum(before.values()), 6), "cost_after": round(sum(after.values()), 6),
            "texts": self.texts.counts, "settings": self.config.model_dump(mode="json"), **findings,
        }
        report = brief | {
            "sites": {
                str(site): {"cost_before": round(before[site], 6), "cost_after": round(after[site], 6)} for site in rows
            },
            "losses": [round(loss, 6) for loss in losses], "model_fingerprint": self.loaded.fingerprint,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1, allow_nan=False)
        (self.out / "report.json").write_text(text + "\n", encoding="utf-8")
        draw_costs(self.out / "report.png", before, after, losses, title=f"{self.method}: {brief['measured_on']}")
        return brief

    def origin(self, brief: Mapping[str, Any], licence: str) -> Origin:
        """Where the pack comes from, for its header."""
        return Origin(
            model_fingerprint=self.loaded.fingerprint, fit_data_digest=self.digest, fit_report=brief, licence=licence
        )

    def _costs(self, rows: Mapping[Site, EditRow]) -> tuple[dict[Site, float], dict[Site, float]]:
        texts = self.texts
        source, target = (texts.held_out_source or texts.source), (texts.held_out_target or texts.target)
        before, goal = self.states(source), self.states(target)
        with edits(self.loaded.model, rows):
            after = self.states(source)

        def cost(states: Tensor, site: Site) -> float:
            found = float(transport_cost(*paired(states, goal[site], self.config.seed)))
            if not found < float("inf"):
                raise ConfigurationError(f"site {site}: activations are not finite after the edit; no pack is written")
            return found

        return (
            {site: cost(before[site], site) for site in self.sites},
            {site: cost(after[site], site) for site in self.sites},
        )
