"""Fit steering vectors: from the activations of source texts towards those of target texts.

    difference   mean of the targets minus mean of the sources (arXiv 2312.06681)
    principal    first principal direction of the differences of random source-target pairs (arXiv 2310.01405), pointing
                 to the targets and as long as the projection of the difference of means on it

The vector carries its size: strength 1 moves the mean source to the mean target along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.labelled_texts import LabelledText
from guard.fit.loaded_model import LoadedModel, progress
from guard.fit.steering_fit import SteeringFit, from_files
from guard.fit.transport import paired
from guard.interventions.fit_config import Pooling
from guard.interventions.steer import Direction, SteerConfig, save_steer
from guard.kernels.edit_formula import EditRow
from guard.packs.format import Pack
from guard.site import Site

# texts between two saved states
CHECKPOINT_TEXTS = 256


def fit_steer(
    loaded: LoadedModel, texts: Sequence[LabelledText], config: SteerConfig, *, out: Path, licence: str = "unknown",
    show_progress: bool = True,
) -> Pack:
    """Fit and write report.json, report.png and the pack `steer/` into `out`; a stopped fit goes on from
    state.safetensors. Raises GuardError."""
    fit = SteeringFit(loaded, texts, config, method="steer", out=out, show_progress=show_progress)
    source, target = _states(fit, config)
    vectors = {
        site: steering_vector(source[site], target[site], config.direction, seed=config.seed) for site in fit.sites
    }
    rows = {site: EditRow(shift=vector) for site, vector in vectors.items()}
    brief = fit.report(rows, lengths={str(site): round(float(vector.norm()), 6) for site, vector in vectors.items()})
    return save_steer(out / "steer", vectors, **fit.origin(brief, licence))


run_fit_steer = from_files(fit_steer)


def steering_vector(source: Tensor, target: Tensor, direction: Direction, *, seed: int = 0) -> Tensor:
    """The vector [d] of source [n, d] and target [m, d], float32. Raises ConfigurationError when their means agree."""
    difference = target.double().mean(dim=0) - source.double().mean(dim=0)
    if not float(difference.norm()) > 0.0:
        raise ConfigurationError("source and target have the same mean activation; there is no direction between them")
    if direction == "difference":
        return difference.float()
    first, second = paired(source.double(), target.double(), seed)
    # not centred: the pairs' common direction is what is looked for
    unit: Tensor = torch.linalg.svd(second - first, full_matrices=False).Vh[0]
    return (float(difference @ unit) * unit).float()


def _states(fit: SteeringFit, config: SteerConfig) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
    """Activations of source and target texts, read in chunks that are saved as they come."""
    parts = {"source": fit.texts.source, "target": fit.texts.target}
    state = fit.checkpoint.load()
    total = sum(-(-len(rows) // CHECKPOINT_TEXTS) for rows in parts.values())
    with progress("reading activations", total, show=fit.show_progress) as advance:
        for label, rows in parts.items():
            for start in range(0, len(rows), CHECKPOINT_TEXTS):
                _read(fit, rows[start : start + CHECKPOINT_TEXTS], f"{label}/{start}", state, config.pooling)
                advance()
    found: list[dict[Site, Tensor]] = []
    for label, rows in parts.items():
        chunks = [f"{label}/{start}" for start in range(0, len(rows), CHECKPOINT_TEXTS)]
        found.append({site: torch.cat([state[f"{chunk}/{site}"] for chunk in chunks]) for site in fit.sites})
    return found[0], found[1]


def _read(
    fit: SteeringFit, rows: Sequence[LabelledText], chunk: str, state: dict[str, Tensor], pooling: Pooling
) -> None:
    if all(f"{chunk}/{site}" in state for site in fit.sites):
        return
    state |= {f"{chunk}/{site}": value for site, value in fit.states(rows, pooling=pooling).items()}
    fit.checkpoint.save(state)
