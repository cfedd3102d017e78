"""`guard pack`: fitted interventions on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from guard.errors import ConfigurationError
from guard.packs.import_formats import FORMATS, Format

packs = typer.Typer(help="Packs: fitted interventions on disk.", no_args_is_help=True)

PackArgument = Annotated[Path, typer.Argument(metavar="PACK", help="Pack folder or .safetensors file.")]


@packs.command("show")
def show_pack(pack: PackArgument) -> None:
    """Verify PACK and print its header with sites and fit report, and the shapes of its tensors, as JSON."""
    from guard.packs.format import load_pack

    loaded = load_pack(pack)
    shapes = {
        name: f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in sorted(loaded.tensors.items())
    }
    typer.echo(json.dumps({**loaded.header.model_dump(mode="json"), "shapes": shapes}, indent=2, ensure_ascii=False))


@packs.command("verify")
def verify_pack(
    pack: PackArgument,
    model: Annotated[Path | None, typer.Option(help="Model folder that the pack must have been made for.")] = None,
) -> None:
    """Check that PACK is whole, and that it was made for the model in --model and fits it."""
    from guard.interventions.edits import check_fits, edit_rows
    from guard.packs.fingerprint import model_fingerprint
    from guard.packs.format import load_pack
    from guard.packs.model_shape import model_shape

    loaded = load_pack(pack, model_fingerprint=model_fingerprint(model) if model is not None else None)
    if loaded.header.kind == "edit":
        edit_rows(loaded)
        if model is not None:
            shape = model_shape(model)
            check_fits(loaded, width=shape.width, num_layers=shape.num_layers)
    for_model = "" if model is None else ", made for this model"
    typer.echo(f"{pack.name} is whole{for_model}: {loaded.header.kind} {loaded.content_hash}")


@packs.command("import")
def import_pack(
    format: Annotated[
        Format, typer.Argument(metavar="FORMAT", help=f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    ],
    source: Annotated[Path, typer.Argument(help="File, or folder of a SAELens autoencoder.")],
    out: Annotated[Path, typer.Argument(help="New pack: a folder, or a file that ends in .safetensors.")],
    model: Annotated[Path, typer.Option(help="Model folder that the pack is for.")],
    site: Annotated[
        str, typer.Option(help="Sites such as 12.resid_post or 4-8.mlp_norm; empty where the source says them.")
    ] = "",
    features: Annotated[str, typer.Option(help="Indices of an autoencoder's features, such as 12,55.")] = "",
    value: Annotated[float | None, typer.Option(help="Value that an autoencoder's features are set to.")] = None,
    gate: Annotated[
        Literal["own", "any"], typer.Option(help="own: set a feature where it fires; any: all where one fires.")
    ] = "own",
    threshold: Annotated[
        float | None, typer.Option(help="Calibrated threshold of a TopK autoencoder, in units of its activations.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence recorded in the pack.")] = "unknown",
) -> None:
    """Make the pack OUT for a model from SOURCE: features of an autoencoder, steering vectors or affine maps."""
    from guard.interventions.sae import sae_config
    from guard.packs import importing

    config = None if value is None else sae_config(value, gate)
    if value is None and gate != "own":
        raise ConfigurationError("--gate needs --value")
    choice = importing.Choice(site, _indices(features), config, threshold)
    pack = importing.import_pack(format, source, out, model=model, choice=choice, licence=licence)
    typer.echo(f"{pack.header.method} for {', '.join(pack.header.sites)}, written to {out}: {pack.content_hash}")


def _indices(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isascii() and part.isdigit() and len(part) <= 9 for part in parts):
        raise ConfigurationError(f"--features {text!r} is not a list of indices such as 12,55")
    return tuple(int(part) for part in parts)
