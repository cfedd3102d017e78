"""Fit a subspace projection: hidden states lose the directions of a concept, x' = m + (I - Q^T Q)(x - m).

Sources: SAFREE's concept subspace (arXiv 2410.12761) taken from hidden states instead of text embeddings, around the
retain mean m as in affine concept erasure (arXiv 2411.09003); rank 1 with the difference of means is the refusal
direction's ablation (arXiv 2406.11717). Which basis: `guard.fit.concept_basis`, and `guard.fit.concept_clusters` for
several clusters of the forget texts. Keeping the norm of what is projected is arXiv 2605.12765.

Nothing is searched: the pack follows from the data and the configuration. What it costs on other texts is measured by
the share of their energy that it removes, on held-out texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from guard.fit.concept_basis import ConceptBasis, concept_basis, removed_share
from guard.fit.concept_clusters import clustered_basis
from guard.fit.concept_fit import ConceptFit
from guard.fit.concept_report import draw_lines, write_report
from guard.fit.concept_rows import ConceptTexts
from guard.fit.concept_states import ConceptStates
from guard.interventions.subspace import SubspaceConfig, save_subspace
from guard.kernels.edit_formula import MAX_RANK
from guard.packs.format import Pack
from guard.site import Site


def fit_subspace_states(
    states: Mapping[Site, ConceptStates], texts: ConceptTexts, config: SubspaceConfig, *, out: Path, fingerprint: str,
    digest: str, licence: str = "unknown",
) -> Pack:
    """Fit to states that are already there; write report.json, report.png and the pack `subspace/` into `out`.
    Raises GuardError."""
    bases, means = subspaces(states, config)
    report: dict[str, Any] = {
        "method": "subspace", "sites": {str(site): _site_report(states[site], bases[site]) for site in bases},
        "settings": config.recorded(), "texts": texts.counts, "model_fingerprint": fingerprint,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_report(out / "report.json", report)
    draw_lines(
        out / "report.png", {str(site): _cumulative(found) for site, found in bases.items()},
        title="Energy of the concept kept by the first directions", x="rank", y="share of the energy",
    )
    return save_subspace(
        out / "subspace", {site: found.basis for site, found in bases.items()}, means if config.affine else None,
        keep_norm=config.keep_norm, model_fingerprint=fingerprint, fit_data_digest=digest, licence=licence,
        fit_report={key: report[key] for key in ("sites", "settings", "texts")},
    )


# the same from a loaded model, and from files
_FIT = ConceptFit(fit_subspace_states, pooling=lambda config: config.pooling)
fit_subspace, run_fit_subspace = _FIT.from_rows, _FIT.from_files


def subspaces(
    states: Mapping[Site, ConceptStates], config: SubspaceConfig
) -> tuple[dict[Site, ConceptBasis], dict[Site, Tensor]]:
    """Basis and retain mean of every site. Raises ConfigurationError."""
    bases = {site: _basis(found, config) for site, found in states.items()}
    return bases, {site: found.retain.float().mean(dim=0) for site, found in states.items()}


def _basis(states: ConceptStates, config: SubspaceConfig) -> ConceptBasis:
    if config.clusters > 1:
        return clustered_basis(states, config)
    return concept_basis(
        states.forget, states.retain, config.kind, energy=config.energy, max_rank=config.max_rank, ridge=config.ridge
    )


def _site_report(states: ConceptStates, found: ConceptBasis) -> dict[str, Any]:
    mean = states.retain.float().mean(dim=0)
    clusters = {"texts_of_clusters": list(found.cluster_texts)} if found.cluster_texts else {}
    return clusters | {
        "rank": len(found.basis), "energy_kept": round(found.kept, 6),
        "energy_removed": {
            name: round(removed_share(part, mean, found.basis), 6) for name, part in states.parts.items()
        },
    }


def _cumulative(found: ConceptBasis) -> list[tuple[float, float]]:
    share = found.spectrum.cumsum(0) / found.spectrum.sum()
    return [(index + 1.0, float(value)) for index, value in enumerate(share[: 2 * MAX_RANK])]
