"""The picture of a steering fit: distance to the target at every site before and after, and the loss of the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from guard.site import Site


def draw_costs(
    path: Path, before: Mapping[Site, float], after: Mapping[Site, float], losses: Sequence[float], *, title: str
) -> None:
    """Write a PNG of the costs by site, and of `losses` by step where there are any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow import, only fits draw
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(11.0 if losses else 7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if losses else 1, squeeze=False)[0]
    names = [str(site) for site in before]
    panels[0].plot(names, list(before.values()), marker="o", label=f"no edit (sum {sum(before.values()):.3g})")
    panels[0].plot(names, list(after.values()), marker="o", label=f"strength 1 (sum {sum(after.values()):.3g})")
    panels[0].tick_params(axis="x", labelrotation=90)
    panels[0].set_ylabel("squared Wasserstein distance to the target")
    panels[0].set_title(title)
    panels[0].legend()
    if losses:
        panels[1].plot(range(len(losses)), losses)
        panels[1].set_yscale("log")
        panels[1].set_xlabel("step")
        panels[1].set_ylabel("transport cost of the batch, all sites")
    figure.savefig(path, dpi=120)
