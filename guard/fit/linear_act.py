"""Fit Linear-AcT: one affine map per channel, in closed form, from sorted source to sorted target activations.

Source: arXiv 2410.23054. One sample is the mean activation of a text. `incremental` fits the sites in forward order,
each on source activations that the maps before have already changed; `at_once` fits all on the unchanged model.

The paper leaves activations outside the range seen in the fit unchanged. That is not affine and is not served: see
`guard.interventions.lineas`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from guard.fit.hooks import edits
from guard.fit.labelled_texts import LabelledText
from guard.fit.loaded_model import LoadedModel, progress
from guard.fit.steering_fit import SteeringFit, from_files
from guard.fit.transport import paired, sorted_regression
from guard.interventions.linear_act import LinearActConfig
from guard.interventions.lineas import save_lineas
from guard.kernels.edit_formula import EditRow
from guard.packs.format import Pack
from guard.site import Site

Maps = dict[Site, tuple[Tensor, Tensor]]


def fit_linear_act(
    loaded: LoadedModel, texts: Sequence[LabelledText], config: LinearActConfig, *, out: Path,
    licence: str = "unknown", show_progress: bool = True,
) -> Pack:
    """Fit and write report.json, report.png and the pack `linear-act/` into `out`; a stopped fit goes on from
    state.safetensors. Raises GuardError."""
    fit = SteeringFit(loaded, texts, config, method="linear-act", out=out, show_progress=show_progress)
    maps = _maps(fit, config)
    brief = fit.report(map_rows(maps))
    return save_lineas(out / "linear-act", maps, method="linear-act", **fit.origin(brief, licence))


run_fit_linear_act = from_files(fit_linear_act)


def map_rows(maps: Maps) -> dict[Site, EditRow]:
    """The edit of each map: scale = weight - 1, shift = bias."""
    return {site: EditRow(scale=weight - 1.0, shift=bias) for site, (weight, bias) in maps.items()}


def _maps(fit: SteeringFit, config: LinearActConfig) -> Maps:
    state = fit.checkpoint.load()
    targets = fit.states(fit.texts.target, pooling=config.pooling)
    plain = fit.states(fit.texts.source, pooling=config.pooling) if config.order == "at_once" else {}
    maps: Maps = {}
    with progress("fitting sites", len(fit.sites), show=fit.show_progress) as advance:
        for site in fit.sites:
            if f"{site}/weight" not in state:
                source = plain[site] if plain else _changed_source(fit, maps, site, config)
                weight, bias = sorted_regression(*paired(source, targets[site], config.seed))
                state |= {f"{site}/weight": weight, f"{site}/bias": bias}
                fit.checkpoint.save(state)
            maps[site] = state[f"{site}/weight"], state[f"{site}/bias"]
            advance()
    return maps


def _changed_source(fit: SteeringFit, maps: Maps, site: Site, config: LinearActConfig) -> Tensor:
    with edits(fit.loaded.model, map_rows(maps)):
        return fit.states(fit.texts.source, [site], pooling=config.pooling)[site]

