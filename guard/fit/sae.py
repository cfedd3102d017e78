"""Fit a feature clamp: train a sparse autoencoder at one site, choose the features of a concept, set their value.

Sources: arXiv 2410.19278 (selection by sparsity, negative clamp), DSG arXiv 2504.08192 (by ratio, gate `any`).
A clamp value of another model means nothing here: the value is `-clamp` times the mean norm of the residual stream at
the site, and decoder rows have norm 1, so `clamp` is the length of each feature's push in units of the residual.

The autoencoder is kept in `autoencoder.safetensors` and serves any number of concepts of the same model and site.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.autoencoder import Autoencoder, TrainingReport, train
from guard.fit.checkpoint import Checkpoint, fit_identity
from guard.fit.concept_report import draw_lines, write_report
from guard.fit.concept_rows import ConceptRow, ConceptTexts, read_concept_rows, rows_digest, split_texts
from guard.fit.concept_states import ConceptStates, collect_concept_states
from guard.fit.features import (
    FeatureStatistics,
    feature_statistics,
    firing_share,
    firing_texts,
    raise_thresholds,
    select_by_ratio,
    select_by_sparsity,
)
from guard.fit.loaded_model import load_model, progress
from guard.interventions.fit_config import FitConfig, ModelDtype
from guard.interventions.sae import ClampConfig, SaeConfig, SaeFitConfig, TrainingConfig, save_sae
from guard.packs.format import Pack
from guard.site import Site

AUTOENCODER_FILE = "autoencoder.safetensors"
_PARTS = ("encoder", "encoder_bias", "threshold", "decoder", "decoder_bias")
Part = TypeVar("Part", bound=FitConfig)


@dataclass(frozen=True, slots=True)
class ChosenFeatures:
    """Indices into the autoencoder, the clamp value in its units, and the statistics they were chosen by."""

    indices: tuple[int, ...]
    value: float
    statistics: FeatureStatistics


def fit_sae(
    model: Any, tokenizer: Any, rows: list[ConceptRow], site: Site, training: TrainingConfig, config: ClampConfig, *,
    out: Path, fingerprint: str, autoencoder: Path | None = None, licence: str = "unknown", show_progress: bool = True,
) -> Pack:
    """Fit and write report.json, report.png, the autoencoder and the pack `sae/` into `out`; with `autoencoder`, the
    path of one that was trained for this site before, nothing is trained. Raises GuardError."""
    texts = split_texts(rows, config.held_out_share, config.seed)
    states = collect_concept_states(
        model, tokenizer, texts, (site,), max_length=config.max_length, show_progress=show_progress
    )[site]
    out.mkdir(parents=True, exist_ok=True)
    if autoencoder is not None:
        found, training_report = load_autoencoder(autoencoder), None
    else:
        found, training_report = train_autoencoder(
            states, training, out=out, show_progress=show_progress,
            device=model.get_input_embeddings().weight.device, identity=fit_identity(
                fingerprint, rows_digest(rows), str(site), training.model_dump(), config.max_length,
                config.held_out_share, config.seed,
            ),
        )
        save_autoencoder(out / AUTOENCODER_FILE, found)
    return fit_clamp(
        found, states, texts, site, config, out=out, fingerprint=fingerprint, digest=rows_digest(rows), licence=licence,
        training=training_report,
    )


def train_autoencoder(
    states: ConceptStates, training: TrainingConfig, *, out: Path, identity: str, device: str | torch.device = "cpu",
    show_progress: bool = True,
) -> tuple[Autoencoder, TrainingReport]:
    """Train on forget and retain tokens together. A stopped training of the same `identity` resumes."""
    file = out / "state.safetensors"
    checkpoint = Checkpoint(file, identity)
    with progress("training the autoencoder", training.steps, show=show_progress) as advance:
        trained = train(
            states.both, states.held_out_both, training, checkpoint=checkpoint, advance=advance, device=device
        )
    file.unlink(missing_ok=True)
    return trained


def fit_clamp(
    autoencoder: Autoencoder, states: ConceptStates, texts: ConceptTexts, site: Site, config: ClampConfig, *, out: Path,
    fingerprint: str, digest: str, licence: str = "unknown", training: TrainingReport | None = None,
) -> Pack:
    """Set thresholds, choose features, write report and pack. Raises GuardError, also when no feature stands for the
    concept."""
    autoencoder = raise_thresholds(autoencoder, states.retain, states.retain_lengths, config.retain_texts)
    chosen = choose_features(autoencoder, states, config)
    statistics = chosen.statistics
    features = [
        {
            "index": index, "forget_frequency": round(float(statistics.forget_frequency[index]), 6),
            "retain_frequency": round(float(statistics.retain_frequency[index]), 6),
        }
        for index in chosen.indices
    ]
    report: dict[str, Any] = {
        "method": "sae", "site": str(site), "value": chosen.value, "features": features,
        "tokens_edited": {
            name: round(firing_share(autoencoder, chosen.indices, part), 6) for name, part in states.parts.items()
        },
        "texts_edited": _texts_edited(autoencoder, chosen, states),
        "settings": config.model_dump(mode="json"), "training": asdict(training) if training else None,
        "texts": texts.counts, "model_fingerprint": fingerprint,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_report(out / "report.json", report)
    _draw(out / "report.png", report)
    brief = {key: report[key] for key in ("features", "tokens_edited", "texts_edited", "settings", "texts")}
    return save_sae(
        out / "sae", {site: autoencoder.features(chosen.indices)}, SaeConfig(value=chosen.value, gate=config.gate),
        model_fingerprint=fingerprint, fit_data_digest=digest, licence=licence, fit_report=brief,
    )


def choose_features(autoencoder: Autoencoder, states: ConceptStates, config: ClampConfig) -> ChosenFeatures:
    """The features of the concept and their clamp value. Raises ConfigurationError when there is none."""
    statistics = feature_statistics(autoencoder, states.forget, states.retain)
    if config.selection == "ratio":
        indices = select_by_ratio(statistics, config.count, config.ratio_percentile)
    else:
        indices = select_by_sparsity(statistics, config.count, config.retain_sparsity)
    if not indices:
        raise ConfigurationError("no feature of the autoencoder stands for the concept; allow more, or train longer")
    norm = float(states.retain.float().norm(dim=-1).mean())
    # -0.0 would be another content hash than 0.0
    return ChosenFeatures(tuple(indices), round(-config.clamp * norm, 4) + 0.0, statistics)


def save_autoencoder(path: Path, autoencoder: Autoencoder) -> None:
    """Write all features, for fits of other concepts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: getattr(autoencoder, name).contiguous() for name in _PARTS}, path)


def load_autoencoder(path: Path) -> Autoencoder:
    """Read what `save_autoencoder` wrote. Raises ConfigurationError."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return Autoencoder(**{name: tensors[name].float() for name in _PARTS})
    except (SafetensorError, OSError, ValueError, KeyError) as exc:
        raise ConfigurationError(f"{path.name}: not an autoencoder of `guard fit sae`") from exc


def run_fit_sae(
    model: Path, data: Path, out: Path, config: SaeFitConfig, *, device: str = "cpu", dtype: ModelDtype = "float32",
    licence: str = "unknown", show_progress: bool = True,
) -> Pack:
    """Fit from files: model folder and JSON Lines of text/label. Raises GuardError."""
    site = Site.parse(config.site)
    rows = read_concept_rows(data)
    loaded = load_model(model, device=device, dtype=dtype)
    return fit_sae(
        loaded.model, loaded.tokenizer, rows, site, _part(TrainingConfig, config), _part(ClampConfig, config), out=out,
        fingerprint=loaded.fingerprint, autoencoder=config.autoencoder, licence=licence, show_progress=show_progress,
    )


def _part(kind: type[Part], config: SaeFitConfig) -> Part:
    """The settings of `config` that `kind` has."""
    return kind(**{name: getattr(config, name) for name in kind.model_fields})


def _texts_edited(autoencoder: Autoencoder, chosen: ChosenFeatures, states: ConceptStates) -> dict[str, float]:
    lengths = {
        "forget": states.forget_lengths, "retain": states.retain_lengths,
        "held_out_forget": states.held_out_forget_lengths, "held_out_retain": states.held_out_retain_lengths,
    }
    return {
        name: round(firing_texts(autoencoder, chosen.indices, part, lengths[name]), 6)
        for name, part in states.parts.items()
    }


def _draw(path: Path, report: dict[str, Any]) -> None:
    features = report["features"]
    draw_lines(
        path,
        {
            name: [(position + 1.0, feature[f"{name}_frequency"]) for position, feature in enumerate(features)]
            for name in ("forget", "retain")
        },
        title=f"Chosen features at {report['site']}", x="feature, in the order of choice", y="share of tokens",
    )
