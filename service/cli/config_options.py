"""Options made from the fields of a configuration: name, type, default, bounds, choices and help stand there once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from guard.errors import ConfigurationError
from guard.interventions.fit_config import FitConfig

Config = TypeVar("Config", bound=FitConfig)


def option_parameters(config: type[FitConfig]) -> Iterator[inspect.Parameter]:
    """One keyword for each field of `config`, as Typer reads them from a function's signature."""
    for name in config.own_fields_first():
        field = config.model_fields[name]
        yield inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[field.annotation, _option(name, field)],
            default=inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True),
        )


def configured(config: type[Config], values: dict[str, Any]) -> Config:
    """The configuration of the options' values. Raises ConfigurationError that names the options that are wrong."""
    try:
        return config(**values)
    except ValidationError as error:
        wrong = "; ".join(f"{_flag(str(part['loc'][0]))}: {part['msg']}" for part in error.errors())
        raise ConfigurationError(wrong) from error


def _option(name: str, field: FieldInfo) -> Any:
    # a switch that is off needs no way to turn it off
    flags = [_flag(name)] if field.annotation is bool and field.default is False else []
    bounds: dict[str, Any] = {}
    for bound in field.metadata:
        # bounds that exclude their end are checked by the configuration
        for side, end in (("min", "ge"), ("max", "le")):
            if hasattr(bound, end):
                bounds[side] = getattr(bound, end)
    return typer.Option(*flags, help=field.description, **bounds)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
