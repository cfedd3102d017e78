"""The points of a fit and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FitPoint:
    """Score at one strength, averaged over noise seeds; `spread` is the largest minus the smallest seed."""

    rho: float
    score: float
    spread: float


def draw_curve(
    path: Path, points: Sequence[FitPoint], target: float, best: FitPoint, clean: float, metric: str,
) -> None:
    """Write a PNG: score against rho (log axis) with the retain value, the chosen strength and the clean score."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow import, only fits draw
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.errorbar(
        [p.rho for p in points], [p.score for p in points], yerr=[p.spread / 2 for p in points], marker="o", capsize=2,
        label="corrupted model (bars: spread over noise seeds)",
    )
    axes.axhline(target, color="tab:green", linestyle="--", label=f"retain value {target:.3f}")
    axes.axhline(clean, color="tab:gray", linestyle=":", label=f"without corruption {clean:.3f}")
    axes.axvline(best.rho, color="tab:red", alpha=0.6, label=f"chosen rho {best.rho:.3g}")
    axes.set_xscale("log")
    axes.set_xlabel("rho = noise norm / row norm")
    axes.set_ylabel("ROUGE-L recall" if metric == "rouge" else "mean log-probability of the answer (nats/token)")
    axes.set_title("Strength of embedding corruption")
    axes.legend()
    figure.savefig(path, dpi=120)
