"""Hidden size, number of decoder layers and modules of a model folder, without loading the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from guard.errors import PackError
from guard.packs.partial_read import open_safetensors

_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """`width` is the hidden size d."""

    width: int
    num_layers: int


def model_shape(model: Path) -> ModelShape:
    """The shape of the model folder `model`; of its language part when it has several. Raises PackError."""
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise PackError(f"{model.name}: config.json cannot be read, so the model's shape is unknown") from exc
    if isinstance(config, Mapping) and isinstance(config.get("text_config"), Mapping):
        config = config["text_config"]
    if not isinstance(config, Mapping):
        raise PackError(f"{model.name}: config.json is not an object")
    return ModelShape(_number(config, _WIDTHS, model), _number(config, _LAYERS, model))


def module_names(model: Path) -> frozenset[str]:
    """Last parts of the names of all modules with weights, such as `input_layernorm`. Raises PackError."""
    found: set[str] = set()
    for file in sorted(model.glob("*.safetensors")):
        with open_safetensors(file) as arrays:
            found.update(name.split(".")[-2] for name in arrays.names() if "." in name)
    return frozenset(found)


def _number(config: Mapping[str, object], names: tuple[str, ...], model: Path) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    raise PackError(f"{model.name}: config.json has none of {', '.join(names)}")
