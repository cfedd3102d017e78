"""Puts the op `guard::edit` at the steerable sites of a model.

Decoder layers and norms get another class, like the embedding (`guard.engine.layers`): parameter names stay valid. The
class is made once for each stock class and the site lies in a buffer, so that layers stay one piece of compiled code.
Source of what layers return: vllm/model_executor/models/*.py; most give (hidden, residual) and the stream is their sum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guard.engine.layers import find_decoder_layers
from guard.errors import EngineMismatchError
from guard.site import Site

_PREFIX = "Steered"
_NORMS = {
    "attn_norm": ("input_layernorm", "ln_1", "attention_norm", "self_attn_layer_norm", "attn_norm", "norm1"),
    # Gemma's post_attention_layernorm follows attention; its feed-forward block reads pre_feedforward_layernorm
    "mlp_norm": (
        "pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "ffn_norm", "mlp_norm", "final_layer_norm",
        "norm2",
    ),
}


def wrap_sites(model: nn.Module, sites: Sequence[Site], device: torch.device) -> tuple[Site, ...]:
    """Append the op to the sites that live on this rank and return those; their index in `sites` is the op's argument.

    Raises EngineMismatchError when a layer has no norm of a usual name or is wrapped already.
    """
    if not sites:
        return ()
    modules = dict(model.named_modules())
    names = {int(name.rsplit(".", 1)[-1]): name for name in find_decoder_layers(model)}
    present = []
    for index, site in enumerate(sites):
        if site.layer not in names:
            continue
        layer = modules[names[site.layer]]
        if site.place == "resid_post":
            _wrap(layer, index, device, _steered_layer)
        else:
            _wrap(_norm(layer, site), index, device, _steered_norm)
        present.append(site)
    return tuple(present)


def is_steered(module: nn.Module) -> bool:
    """Whether `wrap_sites` has changed the class of this instance."""
    return type(module).__name__.startswith(_PREFIX)


def _norm(layer: nn.Module, site: Site) -> nn.Module:
    for name in _NORMS[site.place]:
        found = getattr(layer, name, None)
        if isinstance(found, nn.Module):
            return found
    raise EngineMismatchError(f"{type(layer).__name__} has no norm known as {site.place}; leave out the site {site}")


def _wrap(module: nn.Module, index: int, device: torch.device, make: Callable[[type], type]) -> None:
    if is_steered(module):
        raise EngineMismatchError(f"{type(module).__name__} is wrapped already")
    # on the device and not persistent: an input of the graph, absent from checkpoints
    module.register_buffer("guard_edit_site", torch.tensor([index], dtype=torch.int32, device=device), persistent=False)
    module.__class__ = make(type(module))


@functools.cache
def _steered_layer(stock: type) -> type:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = stock.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        hidden, residual = _stream(output)
        torch.ops.guard.edit(hidden, residual, self.guard_edit_site)
        return output

    return type(_PREFIX + stock.__name__, (stock,), {"forward": forward})


@functools.cache
def _steered_norm(stock: type) -> type:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = stock.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        # a fused norm returns (normed, residual): the residual stream goes on as it is
        normed = output[0] if isinstance(output, tuple) else output
        torch.ops.guard.edit(normed, None, self.guard_edit_site)
        return output

    return type(_PREFIX + stock.__name__, (stock,), {"forward": forward})


def _stream(output: Any) -> tuple[Tensor, Tensor | None]:
    """The two parts of the residual stream that a layer returns."""
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        second = output[1] if len(output) > 1 else None
        if second is None:
            return output[0], None
        if isinstance(second, Tensor) and second.shape == output[0].shape:
            return output[0], second
    raise EngineMismatchError("a decoder layer returns no residual stream that the guard knows; start without sites")
