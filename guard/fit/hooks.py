"""The edit formula inside a transformers model, at the same places where the engine edits.

    resid_post   output of decoder layer L (its hidden state)
    attn_norm    output of the norm before attention
    mlp_norm     output of the norm before the feed-forward block

Works with models whose layers and norms have one of the usual names (Llama, Qwen, Mistral, Gemma, Phi, GPT-2,
GPT-NeoX, OPT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from guard.errors import ConfigurationError
from guard.kernels.edit_formula import EditRow, edited
from guard.plan import Phase
from guard.site import Site

_LAYER_LISTS = (
    "model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers", "model.language_model.layers",
    "layers", "h",
)
# the first name that a layer has counts: where attention has norms on both sides, the one before the block is meant
_NORM_NAMES = {
    "attn_norm": ("input_layernorm", "ln_1", "attention_norm", "self_attn_layer_norm", "attn_norm", "norm1"),
    "mlp_norm": (
        "pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "ffn_norm", "mlp_norm", "final_layer_norm",
        "norm2",
    ),
}


@contextmanager
def edits(
    model: Any, rows: Mapping[Site, EditRow], strength: float | Tensor = 1.0, positions: Tensor | None = None,
    phase: Phase = "both",
) -> Iterator[None]:
    """Within this context, the model's activation at each site is `edited(x, row, strength)`.

    `strength`: a number, or a tensor that broadcasts to [B, T], e.g. [B, 1]. `positions`: bool [B, T], the tokens that
    are edited in passes of that shape; None edits all. `phase` is for generation with a cache: a pass of one token is
    `generation`, a longer one `prompt`; tokens that are generated have no entry in `positions` and are all edited.
    Tokens outside keep their activation bit by bit. Contexts nest, the outer one acts first. Gradients flow into
    activations and rows.

    Raises ConfigurationError for a site that the model lacks, a row of another width, or a pass that `positions` does
    not fit.
    """

    def change(row: EditRow) -> Callable[[Tensor], Tensor]:
        return lambda x: _changed(x, row, strength, positions, phase)

    width = layer_width(model)
    with ExitStack() as stack:
        for site, row in rows.items():
            if row.width != width:
                raise ConfigurationError(f"site {site}: the edit is for width {row.width}, the model has {width}")
            device = next(site_module(model, site).parameters()).device
            stack.enter_context(replaced(model, site, change(_placed(row, device))))
        yield


@contextmanager
def recorded(model: Any, sites: tuple[Site, ...] | list[Site]) -> Iterator[dict[Site, Tensor]]:
    """The activations [B, T, d] that each site had in the latest pass, after all edits entered before.

    Not detached: under autograd they carry the graph. Raises ConfigurationError for a site that the model lacks.
    """
    found: dict[Site, Tensor] = {}

    def keep(site: Site) -> Callable[[Tensor], Tensor]:
        def seen(x: Tensor) -> Tensor:
            found[site] = x
            return x

        return seen

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(replaced(model, site, keep(site)))
        yield found


@contextmanager
def replaced(model: Any, site: Site, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this context, the activation x [B, T, d] at `site` is `function(x)`. Raises ConfigurationError."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        # a layer gives its hidden state, alone or first in a tuple
        if isinstance(output, Tensor):
            return function(output)
        return (function(output[0]), *output[1:])

    handle = site_module(model, site).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def site_module(model: Any, site: Site) -> nn.Module:
    """The module whose output is the activation at `site`. Raises ConfigurationError when the model has none."""
    layers = decoder_layers(model)
    if not site.layer < len(layers):
        raise ConfigurationError(f"site {site}: the model has the layers 0..{len(layers) - 1}")
    layer = layers[site.layer]
    if site.place == "resid_post":
        return layer
    for name in _NORM_NAMES[site.place]:
        norm = getattr(layer, name, None)
        if isinstance(norm, nn.Module):
            return norm
    raise ConfigurationError(f"site {site}: a {type(layer).__name__} has no norm of a known name there")


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of a transformers model. Raises ConfigurationError when they have no known name."""
    for name in _LAYER_LISTS:
        found: Any = model
        for part in name.split("."):
            found = getattr(found, part, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    raise ConfigurationError(f"a {type(model).__name__} has no decoder layers of a known name; edits cannot be placed")


def layer_width(model: Any) -> int:
    """d, the length of a hidden state."""
    return int(model.get_input_embeddings().weight.shape[-1])


def _placed(row: EditRow, device: torch.device) -> EditRow:
    parts: dict[str, Any] = {}
    for field in fields(row):
        part = getattr(row, field.name)
        parts[field.name] = part.to(device) if isinstance(part, Tensor) else part
    return EditRow(**parts)


def _changed(x: Tensor, row: EditRow, strength: float | Tensor, positions: Tensor | None, phase: Phase) -> Tensor:
    generated = x.shape[1] == 1
    if phase != "both" and generated != (phase == "generation"):
        return x
    if positions is None or (generated and positions.shape[1] != 1):
        return edited(x, row, strength)
    if positions.shape != x.shape[:2]:
        raise ConfigurationError(f"positions are {list(positions.shape)}, but the pass has {list(x.shape[:2])} tokens")
    return torch.where(positions.unsqueeze(-1), edited(x, row, strength), x)
