"""Reads steering vectors and affine maps that other programs wrote, and finds out which sites they belong to.

Files are .safetensors, or .npy for steering vectors; others are refused, .pt and .bin because they hold pickles.

Names of tensors:
  12.resid_post, 12.resid_post/vector            the guard's own
  12, layer_12, layers.12, direction.12,         one vector for each layer, after that layer (`resid_post`)
  model.layers.12, blocks.12.hook_resid_post
  a single tensor of any name                    goes to the one site that the caller names
  model.layers.12.input_layernorm.weight, .bias  affine maps: a norm's module with `weight` and `bias`
  12.attn_norm/weight, 12.attn_norm/bias         affine maps in the guard's own names
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from guard.errors import ConfigurationError, PackError
from guard.packs.partial_read import open_safetensors
from guard.site import PLACES, Place, Site

Key = TypeVar("Key")
Value = TypeVar("Value")

# norms before attention and before the feed-forward block, by their usual names
_NORMS: dict[str, Place] = {
    "input_layernorm": "attn_norm", "ln_1": "attn_norm", "attention_norm": "attn_norm",
    "pre_feedforward_layernorm": "mlp_norm", "post_attention_layernorm": "mlp_norm", "ln_2": "mlp_norm",
    "ffn_norm": "mlp_norm",
}
_OWN = re.compile(rf"(?P<layer>[0-9]{{1,4}})\.(?P<place>{'|'.join(PLACES)})(?:/(?P<part>[a-z]+))?")
_VECTOR = re.compile(
    r"(?:(?:model\.)?layers?[._]|direction\.|blocks\.)?(?P<layer>[0-9]{1,4})(?:\.hook_resid_post)?(?:[./]vector)?"
)
_MAP = re.compile(
    rf"(?:.*\.)?(?:layers|h|blocks)\.(?P<layer>[0-9]{{1,4}})\.(?P<norm>{'|'.join(_NORMS)})[./](?P<part>weight|bias)"
)


def read_vectors(file: Path, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Steering vectors [d] in float32.

    Where names say the layer, `sites` chooses among them (empty for all). A single vector of another name needs its one
    site; an .npy file [n, d] needs n sites. Raises PackError for a damaged file, ConfigurationError for sites that do
    not fit the file.
    """
    if file.suffix == ".npy":
        vectors = _read_npy(file)
        if len(vectors) != len(sites):
            raise ConfigurationError(f"{file.name} holds {len(vectors)} vectors; name as many sites, not {len(sites)}")
        return dict(zip(sites, vectors, strict=True))
    found: dict[Site, Tensor] = {}
    tensors = _read_safetensors(file)
    for name, tensor in tensors.items():
        site = _site_of_vector(name)
        if site is None and len(tensors) == 1:
            if len(sites) != 1:
                raise ConfigurationError(f"{file.name} does not say where its vector belongs; name one site")
            return {sites[0]: tensor}
        if site is None:
            raise PackError(f"{file.name}: the name {name[:80]!r} does not say which layer the vector belongs to")
        _put(found, site, tensor, file)
    return _chosen(found, sites, file)


def read_maps(file: Path, sites: Sequence[Site], modules: frozenset[str]) -> dict[Site, tuple[Tensor, Tensor]]:
    """Affine maps (weight [d], bias [d]) in float32; `sites` chooses among those of the file, empty for all.

    `modules` are names of modules that the model has: where a model has `pre_feedforward_layernorm`, its
    `post_attention_layernorm` is the output of attention and no site. Raises PackError, ConfigurationError.
    """
    parts: dict[tuple[Site, str], Tensor] = {}
    for name, tensor in _read_safetensors(file).items():
        own, module = _OWN.fullmatch(name), _MAP.fullmatch(name)
        if own is not None and own["part"] in ("weight", "bias"):
            site, part = Site(int(own["layer"]), cast("Place", own["place"])), own["part"]
        elif module is not None:
            if module["norm"] == "post_attention_layernorm" and "pre_feedforward_layernorm" in modules:
                raise PackError(f"{file.name}: in this model {name[:80]!r} is no input of a block, so it is no site")
            site, part = Site(int(module["layer"]), _NORMS[module["norm"]]), module["part"]
        else:
            raise PackError(f"{file.name}: the name {name[:80]!r} is not a norm of a layer with `weight` or `bias`")
        _put(parts, (site, part), tensor, file)
    lacking = [site for site, part in parts if not {(site, "weight"), (site, "bias")} <= set(parts)]
    if lacking:
        raise PackError(f"{file.name}: {lacking[0]} needs a weight and a bias")
    found = {site: (parts[site, "weight"], parts[site, "bias"]) for site, _ in parts}
    return _chosen(found, sites, file)


def _site_of_vector(name: str) -> Site | None:
    own, plain = _OWN.fullmatch(name), _VECTOR.fullmatch(name)
    if own is not None and own["part"] in (None, "vector"):
        return Site(int(own["layer"]), cast("Place", own["place"]))
    return None if plain is None else Site(int(plain["layer"]), "resid_post")


def _put(found: dict[Key, Tensor], key: Key, tensor: Tensor, file: Path) -> None:
    if key in found:
        raise PackError(f"{file.name}: two tensors belong to the same place")
    found[key] = tensor


def _chosen(found: Mapping[Site, Value], sites: Sequence[Site], file: Path) -> dict[Site, Value]:
    absent = [str(site) for site in sites if site not in found]
    if absent:
        raise ConfigurationError(f"{file.name} holds nothing for {', '.join(absent[:5])}")
    return {site: found[site] for site in (sites or sorted(found))}


def _read_npy(file: Path) -> list[Tensor]:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise PackError(f"{file.name}: missing, damaged or not a plain .npy array") from exc
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim not in (1, 2) or array.size == 0:
        raise PackError(f"{file.name} must hold floating-point numbers [d] or [n, d]")
    return list(torch.from_numpy(np.atleast_2d(array).astype(np.float32)))


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    """Every tensor as a vector [d] in float32; [1, d] is taken for [d]."""
    if file.suffix != ".safetensors":
        raise PackError(f"{file.name}: {file.suffix or 'such'} files are not read, because they may hold code; convert "
                        "the tensors to .safetensors")
    found = {}
    with open_safetensors(file) as arrays:
        for name in arrays.names():
            tensor = arrays.whole(name)
            if tensor.dim() not in (1, 2) or tensor.numel() != tensor.shape[-1] or tensor.numel() == 0:
                raise PackError(f"{file.name}: {name[:80]!r} must be a vector, got {list(tensor.shape)}")
            found[name] = tensor.flatten()
    if not found:
        raise PackError(f"{file.name} holds no tensors")
    return found
