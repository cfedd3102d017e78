"""`guard fit`: fit interventions to a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from guard.packs.format import Pack

fits = typer.Typer(help="Fit interventions to a model.", no_args_is_help=True)

ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")]
LabelledData = Annotated[
    Path, typer.Argument(metavar="DATA", help="JSON Lines with `text`, `label` (source, target), perhaps `prompt`.")
]
OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for report, picture, state and pack.")]
FitSites = Annotated[str, typer.Option("--sites", help="Sites, as `--guard-sites` of `guard serve` writes them.")]
MaxLength = Annotated[int, typer.Option(min=1, help="Tokens of a text that count.")]
HeldOutShare = Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the texts that only the report sees.")]
BatchTexts = Annotated[int, typer.Option(min=1, help="Texts per pass.")]
Seed = Annotated[int, typer.Option(min=0, max=4294967295, help="Seed of the split and of every random choice.")]
Device = Annotated[str, typer.Option(help="Torch device.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="Dtype of the model; best the one that is served.")
]
Licence = Annotated[str, typer.Option(help="Licence recorded in the pack.")]
SamplePooling = Annotated[Literal["mean", "tokens"], typer.Option(help="A sample: mean of a text, or each token.")]
NORM_SITES = "*.attn_norm,*.mlp_norm"


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


@fits.command("steer")
def fit_steer(
    model: ModelFolder, data: LabelledData, out: OutFolder, sites: FitSites = "auto",
    direction: Annotated[
        Literal["difference", "principal"], typer.Option(help="Difference of means, or first component of pairs.")
    ] = "difference",
    pooling: Annotated[
        Literal["mean", "last", "tokens"], typer.Option(help="A sample: mean of a text, last token, or each token.")
    ] = "mean",
    max_length: MaxLength = 128, held_out_share: HeldOutShare = 0.25, batch: BatchTexts = 32, seed: Seed = 0,
    device: Device = "cpu", dtype: Dtype = "float32", licence: Licence = "unknown",
) -> None:
    """Fit steering vectors that move MODEL from the source texts of DATA towards its target texts."""
    from guard.fit.steer import SteerConfig, run_fit_steer

    config = SteerConfig(
        sites=sites, direction=direction, pooling=pooling, max_length=max_length, held_out_share=held_out_share,
        batch=batch, seed=seed,
    )
    _show(run_fit_steer(model, data, out, config, device=device, dtype=dtype, licence=licence), out)


@fits.command("linear-act")
def fit_linear_act(
    model: ModelFolder, data: LabelledData, out: OutFolder, sites: FitSites = NORM_SITES,
    order: Annotated[
        Literal["incremental", "at_once"],
        typer.Option(help="Each site after the maps before it, or all on the unchanged model."),
    ] = "incremental",
    pooling: SamplePooling = "mean", max_length: MaxLength = 128, held_out_share: HeldOutShare = 0.25,
    batch: BatchTexts = 32, seed: Seed = 0, device: Device = "cpu", dtype: Dtype = "float32",
    licence: Licence = "unknown",
) -> None:
    """Fit affine maps in closed form (Linear-AcT) from the source texts of DATA to its target texts."""
    from guard.fit.linear_act import LinearActConfig, run_fit_linear_act

    config = LinearActConfig(
        sites=sites, order=order, pooling=pooling, max_length=max_length, held_out_share=held_out_share, batch=batch,
        seed=seed,
    )
    _show(run_fit_linear_act(model, data, out, config, device=device, dtype=dtype, licence=licence), out)


@fits.command("lineas")
def fit_lineas(
    model: ModelFolder, data: LabelledData, out: OutFolder, sites: FitSites = NORM_SITES,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the descent.")] = 1000,
    samples: Annotated[int, typer.Option(min=2, help="Source and target texts of a step.")] = 32,
    optimizer: Annotated[Literal["sgd", "adam"], typer.Option(help="Descent.")] = "sgd",
    learning_rate: Annotated[float, typer.Option(min=1e-9, max=10.0, help="First one; it decays to 0.")] = 0.1,
    gamma: Annotated[float, typer.Option(min=0.0, help="Weight of the sparse-group lasso.")] = 0.0,
    lambda_l1: Annotated[float, typer.Option(min=0.0, help="Its part for single channels.")] = 1.0,
    lambda_group: Annotated[float, typer.Option(min=0.0, help="Its part for whole sites.")] = 1.0,
    kappa: Annotated[
        Literal["step", "constant"], typer.Option(help="Proximal step: gamma times the learning rate, or gamma.")
    ] = "step",
    standardise: Annotated[
        bool, typer.Option("--standardise", help="Fit in units of the targets' spread; not in the paper.")
    ] = False,
    pooling: SamplePooling = "mean", max_length: MaxLength = 128, held_out_share: HeldOutShare = 0.25,
    batch: BatchTexts = 32, checkpoint_steps: Annotated[int, typer.Option(min=1, help="Steps per saved state.")] = 100,
    seed: Seed = 0, device: Device = "cpu", dtype: Dtype = "float32", licence: Licence = "unknown",
) -> None:
    """Fit affine maps end to end (LinEAS) from the source texts of DATA to its target texts."""
    from guard.fit.lineas import LineasConfig, run_fit_lineas

    config = LineasConfig(
        sites=sites, steps=steps, samples=samples, optimizer=optimizer, learning_rate=learning_rate, gamma=gamma,
        lambda_l1=lambda_l1, lambda_group=lambda_group, kappa=kappa, standardise=standardise, pooling=pooling,
        max_length=max_length, held_out_share=held_out_share, batch=batch, checkpoint_steps=checkpoint_steps, seed=seed,
    )
    _show(run_fit_lineas(model, data, out, config, device=device, dtype=dtype, licence=licence), out)


def _show(pack: Pack, out: Path) -> None:
    report = pack.header.fit_report
    typer.echo(
        f"{pack.header.method} {pack.content_hash}: distance to the target {report['cost_before']} -> "
        f"{report['cost_after']} on {report['measured_on']}, written to {out}"
    )
