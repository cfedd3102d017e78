"""`guard fit subspace|sae|cast`: edits that take a concept out of a model's hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from guard.errors import ConfigurationError

Config = TypeVar("Config", bound=BaseModel)
Model = Annotated[Path, typer.Argument(help="Model folder.")]
Data = Annotated[
    Path, typer.Argument(help="JSON Lines with `text`, as the model sees it, and `label`: forget or retain.")
]
Out = Annotated[Path, typer.Argument(help="Folder for the report, the picture and the pack.")]
Sites = Annotated[
    str, typer.Option(help="Comma list of LAYER.PLACE or FIRST-LAST.PLACE; `auto`: four layers over the model.")
]
HeldOut = Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the texts kept for the report.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the split and of training.")]
Device = Annotated[str, typer.Option(help="Torch device.")]
MaxLength = Annotated[int, typer.Option(min=1, help="Tokens of a text that count.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="Dtype of the model; best the one that is served.")
]
Licence = Annotated[str, typer.Option(help="Licence recorded in the pack.")]


def fit_subspace(
    model: Model, data: Data, out: Out, sites: Sites = "auto",
    kind: Annotated[
        Literal["contrast", "energy", "difference"],
        typer.Option(help="Directions: most concept for the retain variance, most concept, or between both means."),
    ] = "contrast",
    energy: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the concept's energy to keep.")] = 0.95,
    max_rank: Annotated[int, typer.Option(min=1, max=32, help="Most directions removed at a site.")] = 4,
    ridge: Annotated[float, typer.Option(min=1e-6, help="`contrast`: smaller spares retain texts more.")] = 0.5,
    affine: Annotated[bool, typer.Option(help="Project around the retain mean instead of around zero.")] = True,
    pooling: Annotated[
        Literal["tokens", "mean", "last"], typer.Option(help="Every token of a text, their mean, or the last one.")
    ] = "tokens",
    max_length: MaxLength = 128, held_out_share: HeldOut = 0.2, seed: Seed = 0, device: Device = "cpu",
    dtype: Dtype = "float32", licence: Licence = "unknown",
) -> None:
    """Find the subspace in which the forget texts of DATA lie in MODEL, and write the projection that removes it."""
    from guard.fit.subspace import SubspaceConfig, run_fit_subspace

    config = settings(
        SubspaceConfig, kind=kind, energy=energy, max_rank=max_rank, ridge=ridge, affine=affine,
        pooling=pooling, max_length=max_length, held_out_share=held_out_share, seed=seed,
    )
    pack = run_fit_subspace(model, data, out, sites=sites, config=config, device=device, dtype=dtype, licence=licence)
    typer.echo(f"{', '.join(pack.header.sites)}, written to {out}")


def fit_sae(
    model: Model, data: Data, out: Out,
    site: Annotated[str, typer.Option(help="Where the autoencoder reads: LAYER.resid_post.")],
    autoencoder: Annotated[
        Path | None, typer.Option(help="Autoencoder of an earlier fit at this site; nothing is trained.")
    ] = None,
    features: Annotated[int, typer.Option(min=2, help="Features of the autoencoder.")] = 1024,
    active: Annotated[int, typer.Option(min=1, help="Features per token, on average.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 1500,
    batch: Annotated[int, typer.Option(min=2, help="Tokens per step.")] = 1024,
    learning_rate: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    selection: Annotated[
        Literal["sparsity", "ratio"], typer.Option(help="Features that are rare on retain texts, or DSG's ratio.")
    ] = "sparsity",
    retain_texts: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Most retain texts one feature may fire in, as a share; 1: any.")
    ] = 0.02,
    count: Annotated[int, typer.Option(min=1, max=32, help="Most features chosen.")] = 16,
    ratio_percentile: Annotated[float, typer.Option(min=0.0, max=100.0, help="`ratio`: percentile kept.")] = 95.0,
    retain_sparsity: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="`sparsity`: largest share of retain tokens.")
    ] = 0.01,
    clamp: Annotated[float, typer.Option(min=0.0, help="Push in residual norms; 0 switches features off.")] = 0.3,
    gate: Annotated[
        Literal["own", "any"], typer.Option(help="A feature that fires is set, or all where one fires.")
    ] = "own",
    max_length: MaxLength = 128, held_out_share: HeldOut = 0.2, seed: Seed = 0, device: Device = "cpu",
    dtype: Dtype = "float32", licence: Licence = "unknown",
) -> None:
    """Train a sparse autoencoder on MODEL, choose the features of the forget texts of DATA and write their clamp."""
    from guard.fit.autoencoder import TrainingConfig
    from guard.fit.sae import ClampConfig, run_fit_sae

    training = settings(
        TrainingConfig, features=features, active=active, steps=steps, batch=batch, learning_rate=learning_rate,
        seed=seed,
    )
    config = settings(
        ClampConfig, selection=selection, retain_texts=retain_texts, count=count, ratio_percentile=ratio_percentile,
        retain_sparsity=retain_sparsity, clamp=clamp, gate=gate, max_length=max_length,
        held_out_share=held_out_share, seed=seed,
    )
    pack = run_fit_sae(
        model, data, out, site=site, training=training, config=config, autoencoder=autoencoder, device=device,
        dtype=dtype, licence=licence,
    )
    typer.echo(f"{', '.join(pack.header.sites)}, written to {out}")


def fit_cast(
    model: Model, data: Data, out: Out, sites: Sites = "auto",
    condition: Annotated[
        Literal["discriminant", "difference"], typer.Option(help="Direction between both means, whitened or not.")
    ] = "discriminant",
    ridge: Annotated[float, typer.Option(min=1e-6, help="`discriminant`: larger comes nearer to `difference`.")] = 0.5,
    scale: Annotated[float, typer.Option(min=0.0, help="Length of the push in distances between the means.")] = 10.0,
    grid_points: Annotated[int, typer.Option(min=2, max=10000, help="Thresholds tried.")] = 201,
    max_length: MaxLength = 128, held_out_share: HeldOut = 0.2, seed: Seed = 0, device: Device = "cpu",
    dtype: Dtype = "float32", licence: Licence = "unknown",
) -> None:
    """Find the condition that tells the forget texts of DATA from the others, and steer away from them where it holds.

    Texts with the label `behaviour` show what MODEL should do instead; without any, the push goes to the retain texts.
    """
    from guard.fit.cast import CastConfig, run_fit_cast

    config = settings(
        CastConfig, condition=condition, ridge=ridge, scale=scale, grid_points=grid_points,
        max_length=max_length,
        held_out_share=held_out_share, seed=seed,
    )
    pack = run_fit_cast(model, data, out, sites=sites, config=config, device=device, dtype=dtype, licence=licence)
    typer.echo(f"{', '.join(pack.header.sites)}, written to {out}")


def settings(config: type[Config], **values: Any) -> Config:
    """The settings of a fit. Raises ConfigurationError that names the options that are wrong."""
    try:
        return config(**values)
    except ValidationError as exc:
        wrong = "; ".join(f"--{str(part['loc'][0]).replace('_', '-')}: {part['msg']}" for part in exc.errors())
        raise ConfigurationError(wrong) from exc
