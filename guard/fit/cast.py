"""Fit conditional steering: a condition that tells the concept from other texts, and a push away from it.

Source: CAST, arXiv 2409.05907, with per-token dot products instead of one cosine for the prompt (see
`guard.interventions.cast`). For states F of forget texts and R of retain texts at one site:

  condition    difference: mean F - mean R; discriminant: (Sigma_R + ridge * mean variance * I)^-1 (mean F - mean R),
               with the covariance of retain tokens only, since few tokens of a forget text need to show it; both of
               norm 1. Score of a token: <c, x - mean R>.
  threshold    grid over the scores; a text meets the condition when one of its tokens exceeds it. The one of the
               largest F1 on the fit texts; among equals the middle one, furthest from both sides.
  behaviour    scale * (mean of the behaviour texts, or of the retain texts, - mean F)

With several sites, the one of the best F1 is kept, the earliest among equals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.concept_fit import ConceptFit
from guard.fit.concept_report import draw_lines, write_report
from guard.fit.concept_rows import ConceptTexts
from guard.fit.concept_states import ConceptStates
from guard.interventions.cast import CastConfig, Condition, save_cast
from guard.packs.format import Pack
from guard.site import Site


@dataclass(frozen=True, slots=True)
class ThresholdPoint:
    """How texts are told apart at one threshold; shares in [0, 1]."""

    threshold: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True, slots=True)
class FittedCondition:
    """`vector` [d] of norm 1, `bias` = -<vector, mean R>, the best point and all points of the grid."""

    vector: Tensor
    bias: float
    best: ThresholdPoint
    points: tuple[ThresholdPoint, ...]


def fit_cast_states(
    states: Mapping[Site, ConceptStates], texts: ConceptTexts, config: CastConfig, *, out: Path, fingerprint: str,
    digest: str, licence: str = "unknown",
) -> Pack:
    """Fit to states that are already there; write report.json, report.png and the pack `cast/` into `out`.
    Raises GuardError."""
    if not states:
        raise ConfigurationError("conditional steering needs at least one site")
    conditions = {site: fit_condition(found, config) for site, found in sorted(states.items())}
    site = max(conditions, key=lambda candidate: conditions[candidate].best.f1)
    condition, behaviour = conditions[site], behaviour_vector(states[site], config.scale)
    report: dict[str, Any] = {
        "method": "cast", "site": str(site), "best": asdict(condition.best),
        "held_out": _held_out(states[site], condition), "push": round(float(behaviour.norm()), 6),
        "f1_by_site": {str(name): found.best.f1 for name, found in conditions.items()},
        "settings": config.recorded(), "texts": texts.counts, "model_fingerprint": fingerprint,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_report(out / "report.json", report)
    draw_lines(
        out / "report.png", {
            name: [(point.threshold, getattr(point, name)) for point in condition.points]
            for name in ("f1", "precision", "recall")
        }, marks=[(condition.best.threshold, condition.best.f1)], title=f"Texts that meet the condition at {site}",
        x="threshold", y="share",
    )
    fitted = Condition(
        vector=condition.vector[None], threshold=torch.tensor([condition.best.threshold]),
        bias=torch.tensor([condition.bias]),
    )
    brief = {key: report[key] for key in ("best", "held_out", "push", "f1_by_site", "settings", "texts")}
    return save_cast(
        out / "cast", {site: fitted}, {site: behaviour[None]}, model_fingerprint=fingerprint, fit_data_digest=digest,
        fit_report=brief, licence=licence,
    )


# the same from a loaded model, and from files
_FIT = ConceptFit(fit_cast_states)
fit_cast, run_fit_cast = _FIT.from_rows, _FIT.from_files


def fit_condition(states: ConceptStates, config: CastConfig) -> FittedCondition:
    """Condition vector and threshold of one site. Raises ConfigurationError when both means are equal."""
    vector = condition_vector(states.forget, states.retain, config)
    bias = -float(states.retain.float().mean(dim=0) @ vector)
    forget = text_scores(states.forget, states.forget_lengths, vector, bias)
    retain = text_scores(states.retain, states.retain_lengths, vector, bias)
    points = threshold_grid(forget, retain, config.grid_points)
    return FittedCondition(vector, bias, best_threshold(points), tuple(points))


def condition_vector(forget: Tensor, retain: Tensor, config: CastConfig) -> Tensor:
    """The condition [d] of norm 1 from token states [n, d] and [m, d]. Raises ConfigurationError."""
    center = retain.double().mean(dim=0)
    vector = forget.double().mean(dim=0) - center
    if config.condition == "discriminant":
        centred = retain.double() - center
        covariance = centred.T @ centred / len(centred)
        level = covariance.diagonal().mean().clamp_min(1e-30)
        vector = torch.linalg.solve(
            covariance + config.ridge * level * torch.eye(len(vector), dtype=torch.float64), vector
        )
    norm = float(vector.norm())
    if not norm > 0.0:
        raise ConfigurationError("forget and retain texts have the same mean; no condition tells them apart")
    condition: Tensor = (vector / norm).float()
    return condition


def behaviour_vector(states: ConceptStates, scale: float) -> Tensor:
    """The push [d]: away from the forget texts, towards the behaviour texts where there are any."""
    target = states.behaviour if len(states.behaviour) else states.retain
    return scale * (target.float().mean(dim=0) - states.forget.float().mean(dim=0))


def text_scores(states: Tensor, lengths: Sequence[int], vector: Tensor, bias: float) -> Tensor:
    """The largest token score of every text [k] for the token states [sum(lengths), d] of k texts."""
    scores = states.float() @ vector + bias
    return torch.stack([part.max() for part in scores.split(list(lengths))])


def threshold_grid(forget: Tensor, retain: Tensor, grid_points: int) -> list[ThresholdPoint]:
    """Thresholds between the smallest and the largest text score, evenly spaced, and how they do."""
    both = torch.cat([forget, retain])
    return [measure(forget, retain, float(level)) for level in torch.linspace(both.min(), both.max(), grid_points)]


def measure(forget: Tensor, retain: Tensor, threshold: float) -> ThresholdPoint:
    """F1, precision and recall of `score > threshold` as the sign of a forget text."""
    hits, false_hits = int((forget > threshold).sum()), int((retain > threshold).sum())
    precision = hits / (hits + false_hits) if hits + false_hits else 0.0
    recall = hits / len(forget)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return ThresholdPoint(threshold, round(f1, 6), round(precision, 6), round(recall, 6))


def best_threshold(points: Sequence[ThresholdPoint]) -> ThresholdPoint:
    """The middle one of the longest run of points with the largest F1."""
    top = max(point.f1 for point in points)
    runs: list[list[ThresholdPoint]] = [[]]
    for point in points:
        if point.f1 == top:
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    longest = max(runs, key=len)
    return longest[(len(longest) - 1) // 2]


def _held_out(states: ConceptStates, condition: FittedCondition) -> dict[str, float] | None:
    """The chosen threshold on held-out texts, and the share of all their tokens that it steers."""
    if not len(states.held_out_forget) or not len(states.held_out_retain):
        return None
    vector, bias, threshold = condition.vector, condition.bias, condition.best.threshold
    point = measure(
        text_scores(states.held_out_forget, states.held_out_forget_lengths, vector, bias),
        text_scores(states.held_out_retain, states.held_out_retain_lengths, vector, bias), threshold,
    )
    shares = {
        f"{name}_tokens_steered": round(float((tokens.float() @ vector + bias > threshold).double().mean()), 6)
        for name, tokens in (("forget", states.held_out_forget), ("retain", states.held_out_retain))
    }
    return {"f1": point.f1, "precision": point.precision, "recall": point.recall, **shares}
