"""`guard pack`: fitted interventions on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

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
