"""The command that fits a method: MODEL, DATA, OUT, the method's settings as options, and what all fits take."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from guard.interventions.fit_config import ModelDtype
from guard.interventions.method import Method
from guard.service.cli.config_options import configured, option_parameters


def method_command(method: Method) -> Any:
    """The command named after `method`, as Typer makes it from a function."""

    def fit(model: Path, data: Path, out: Path, device: str, dtype: ModelDtype, licence: str, **settings: Any) -> None:
        config = configured(method.config, settings)
        pack = method.load_fit()(model, data, out, config, device=device, dtype=dtype, licence=licence)
        typer.echo(f"{method.name} {pack.content_hash}: {method.outcome(pack)}, written to {out}")

    parameters = [*_paths(method), *option_parameters(method.config), *_shared()]
    fit.__doc__ = method.command
    fit.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    fit.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    single = typer.Typer(add_completion=False)
    single.command(method.name)(fit)
    return typer.main.get_command(single)


def _paths(method: Method) -> list[inspect.Parameter]:
    told = {
        "model": "Model folder.", "data": method.data.lines, "out": "Folder for report, picture, state and pack.",
    }
    return [_keyword(name, Path, typer.Argument(metavar=name.upper(), help=text)) for name, text in told.items()]


def _shared() -> list[inspect.Parameter]:
    dtype = typer.Option(help="Dtype of the model; best the one that is served.")
    return [
        _keyword("device", str, typer.Option(help="Torch device."), "cpu"),
        _keyword("dtype", ModelDtype, dtype, "float32"),
        _keyword("licence", str, typer.Option(help="Licence recorded in the pack."), "unknown"),
    ]


def _keyword(name: str, kind: Any, told: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, told], default=default
    )
