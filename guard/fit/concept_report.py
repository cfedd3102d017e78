"""Report and picture of a concept fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Line = Sequence[tuple[float, float]]


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON with finite numbers only."""
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def draw_lines(path: Path, lines: Mapping[str, Line], *, title: str, x: str, y: str, marks: Line = ()) -> None:
    """Write a PNG of one line for each name; `marks` are points to show."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow import, only fits draw
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, line in lines.items():
        axes.plot([point[0] for point in line], [point[1] for point in line], label=name)
    if marks:
        axes.scatter([point[0] for point in marks], [point[1] for point in marks], color="tab:red", label="chosen")
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend()
    figure.savefig(path, dpi=120)
