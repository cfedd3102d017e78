"""Finding and wrapping the places of a model where interventions apply.

The embedding instance gets another class, so parameter names, weight reload, quantisation and LoRA stay valid. This
must happen after the weights are loaded and before the model is compiled, which vLLM does at the first forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.utils import PPMissingLayer

from guard.errors import EngineMismatchError

EMBEDDING_SITE = 0
_LAYER_LISTS = ("layers", "h", "blocks", "block", "decoder_layers")
# parts that do not read the text prompt
_OTHER_TOWERS = ("visual", "vision", "audio", "image", "video", "speech", "encoder", "draft", "mtp")
_PREFIX = "Guarded"


def wrap_embedding(model: nn.Module, hidden_size: int, device: torch.device) -> str:
    """Append the corruption op to the token embedding of `model` and return its dotted name.

    Raises EngineMismatchError unless the model has exactly one token embedding of width `hidden_size`, or when that
    embedding stores a dtype that cannot be corrupted.
    """
    found: list[tuple[str, Any]] = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, VocabParallelEmbedding)
        and not isinstance(module, ParallelLMHead)
        and module.embedding_dim == hidden_size
        and not _other_tower(name)
    ]
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise EngineMismatchError(
            f"{type(model).__name__}: expected one token embedding of width {hidden_size}, found {names}"
        )
    name, module = found[0]
    dtype = module.params_dtype if hasattr(module, "params_dtype") else torch.get_default_dtype()
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise EngineMismatchError(f"the token embedding {name} has dtype {dtype}, which cannot be corrupted")
    _wrap(module, device)
    return str(name)


def find_decoder_layers(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the decoder layers that live on this rank, in order.

    The longest module list with a usual name outside vision and audio towers. Raises EngineMismatchError when none.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.rsplit(".", 1)[-1] in _LAYER_LISTS and not _other_tower(name)
    ]
    if not lists:
        raise EngineMismatchError(f"{type(model).__name__}: no list of decoder layers found")
    name, layers = max(lists, key=lambda item: len(item[1]))
    return tuple(f"{name}.{index}" for index, layer in enumerate(layers) if not isinstance(layer, PPMissingLayer))


def is_wrapped(module: nn.Module) -> bool:
    """Whether `wrap_embedding` has changed the class of this instance."""
    return type(module).__name__.startswith(_PREFIX)


def _other_tower(name: str) -> bool:
    return any(word in part for part in name.lower().split(".") for word in _OTHER_TOWERS)


def _wrap(module: nn.Module, device: torch.device) -> None:
    if is_wrapped(module):
        raise EngineMismatchError("the token embedding is wrapped already")
    stock = type(module)
    # on the device and not persistent: part of the graph's inputs, absent from checkpoints
    module.register_buffer(
        "guard_site", torch.tensor([EMBEDDING_SITE], dtype=torch.int32, device=device), persistent=False
    )

    def forward(self: Any, input_: Tensor) -> Tensor:
        hidden: Tensor = stock.forward(self, input_)
        torch.ops.guard.corrupt(hidden, self.guard_site)
        return hidden

    module.__class__ = type(_PREFIX + stock.__name__, (stock,), {"forward": forward})
