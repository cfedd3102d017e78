"""`guard fit`: fit interventions to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

fits = typer.Typer(help="Fit interventions to a model.", no_args_is_help=True)


@fits.command("eco")
def fit_eco(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    data: Annotated[Path, typer.Argument(help="JSON Lines with `question` and `answer` (and `paraphrase`).")],
    out: Annotated[Path, typer.Argument(help="Folder for the report, the curve and the pack.")],
    target: Annotated[float | None, typer.Option(help="Score that the corrupted model should reach.")] = None,
    retain_records: Annotated[
        Path | None, typer.Option(help="Per-question records of a retain model, whose mean is the target score.")
    ] = None,
    records_split: Annotated[str | None, typer.Option(help="Only the records of this split.")] = None,
    metric: Annotated[Literal["log_probability", "rouge"], typer.Option(help="What is compared.")] = "log_probability",
    kind: Annotated[
        Literal["gauss", "zero_top", "flip_sign", "erase"], typer.Option(help="Corruption function.")
    ] = "gauss",
    scope: Annotated[Literal["spans", "prompt"], typer.Option(help="Tokens that are corrupted.")] = "prompt",
    dims: Annotated[int, typer.Option(min=0, help="Corrupted dimensions, 0 for all.")] = 0,
    rho_low: Annotated[float, typer.Option(help="Smallest strength tried.")] = 0.1,
    rho_high: Annotated[float, typer.Option(help="Largest strength tried.")] = 40.0,
    max_questions: Annotated[int, typer.Option(min=2, help="Most questions used.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise and the split.")] = 0,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    licence: Annotated[str, typer.Option(help="Licence recorded in the pack.")] = "unknown",
) -> None:
    """Find the corruption strength at which MODEL knows as little about DATA as a model that never saw it."""
    from guard.fit.eco import run_fit_eco

    fitted = run_fit_eco(
        model, data, out, target=target, retain_records=retain_records, records_split=records_split, metric=metric,
        kind=kind, dims=dims, scope=scope, rho_low=rho_low, rho_high=rho_high, max_questions=max_questions, seed=seed,
        device=device, licence=licence,
    )
    typer.echo(f"rho {fitted.rho:g}, written to {out}")
