"""Reads chosen features out of published sparse autoencoders and folds their variants into the form that is served.

Formats, with W_enc [d, F], W_dec [F, d], b_enc [F], b_dec [d]:
  SAELens      folder with cfg.json and sae_weights.safetensors; standard, jumprelu, gated, topk or batchtopk
  Gemma Scope  params.npz with W_enc, b_enc, W_dec, b_dec, threshold [F] (arXiv 2408.05147)

What is folded, exactly:
  apply_b_dec_to_input   the encoder sees x - b_dec: bias_i = b_enc_i - <W_enc_i, b_dec>
  gated                  f = [u + b_gate > 0] * relu(e^r_mag u + b_mag) with u the encoder's product (arXiv 2404.16014)
                         fires where e^r_mag u + b_mag > max(0, b_mag - e^r_mag b_gate)
  decoder norms          an encoder that is scaled by the norm of the feature's decoder row, the decoder divided by it
  batchtopk              inference is a JumpReLU with the threshold that training stored (arXiv 2412.06410)
  topk                   the K largest of all features depend on the others; served as a JumpReLU with a threshold that
                         the caller has calibrated, and only then
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from guard.errors import ConfigurationError, PackError
from guard.interventions.sae import SaeFeatures
from guard.kernels.edit_formula import MAX_RANK
from guard.packs.partial_read import Arrays, open_npz, open_safetensors
from guard.site import Site

CONFIG_FILE = "cfg.json"
WEIGHT_FILE = "sae_weights.safetensors"
_JUMPRELU = ("jumprelu", "batchtopk", "matryoshka_batchtopk")
_HOOKS = re.compile(r"blocks\.(?P<block>[0-9]{1,4})\.hook_resid_(?P<end>pre|post)|model\.layers\.(?P<layer>[0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class Variant:
    """How an autoencoder encodes: its activation and what happens to its input."""

    architecture: str
    centred_input: bool
    decoder_norms: bool


def read_saelens(folder: Path, features: Sequence[int], threshold: float | None) -> tuple[Site | None, SaeFeatures]:
    """The features [r] of a SAELens folder in float32, and the site that its hook name says (None for none).

    Raises PackError for a damaged folder or a variant that cannot be served, ConfigurationError for the choice of
    features or threshold.
    """
    config = _read_config(folder / CONFIG_FILE)
    variant = _variant(config)
    with open_safetensors(folder / WEIGHT_FILE) as arrays:
        return _site(config), _features(arrays, variant, features, threshold)


def read_gemma_scope(file: Path, features: Sequence[int]) -> SaeFeatures:
    """The features [r] of a Gemma Scope params.npz in float32. Raises PackError, ConfigurationError."""
    with open_npz(file) as arrays:
        return _features(arrays, Variant("jumprelu", centred_input=False, decoder_norms=False), features, None)


def _features(arrays: Arrays, variant: Variant, chosen: Sequence[int], threshold: float | None) -> SaeFeatures:
    width, count = _check_shapes(arrays, variant)
    _check_choice(chosen, count)
    encoder = arrays.columns("W_enc", chosen)
    decoder = arrays.rows("W_dec", chosen)
    centre = encoder @ arrays.whole("b_dec") if variant.centred_input else torch.zeros(len(chosen))
    indices = torch.tensor(chosen)
    if variant.architecture == "gated":
        size = arrays.whole("r_mag")[indices].exp()
        bias = arrays.whole("b_mag")[indices]
        own_threshold = bias - size * arrays.whole("b_gate")[indices]
        encoder, centre = size[:, None] * encoder, size * centre
    else:
        bias = arrays.whole("b_enc")[indices]
        own_threshold = _threshold(arrays, variant, threshold, count)[indices]
    # the threshold is compared with the product before the input is centred, so the shift goes to the bias alone
    bias = bias - centre
    if variant.decoder_norms:
        norms = decoder.norm(dim=-1)
        encoder, bias, decoder = norms[:, None] * encoder, norms * bias, decoder / norms[:, None]
    # a feature below zero counts as silent in every one of these autoencoders
    return SaeFeatures(encoder.contiguous(), bias, own_threshold.clamp_min(0.0), decoder.contiguous())


def _threshold(arrays: Arrays, variant: Variant, given: float | None, count: int) -> Tensor:
    if variant.architecture == "topk":
        if given is None:
            raise ConfigurationError(
                "which features a TopK autoencoder keeps depends on all others; give a calibrated threshold, such as "
                "the mean of its K-th largest activation"
            )
        return torch.full((count,), given)
    if given is not None:
        raise ConfigurationError(f"a threshold is for TopK autoencoders; this {variant.architecture} has its own")
    if variant.architecture == "standard":
        return torch.zeros(count)
    name = "threshold" if "threshold" in arrays else "topk_threshold"
    if name not in arrays:
        raise PackError(f"a {variant.architecture} autoencoder needs the tensor threshold")
    stored = arrays.whole(name)
    if stored.numel() not in (1, count):
        raise PackError(f"{name} must hold 1 or {count} numbers, got {list(stored.shape)}")
    return stored.flatten().expand(count)


def _check_shapes(arrays: Arrays, variant: Variant) -> tuple[int, int]:
    """d and F. Raises PackError, also for matrices that are stored transposed."""
    biases = ("b_gate", "b_mag", "r_mag") if variant.architecture == "gated" else ("b_enc",)
    missing = [name for name in ("W_enc", "W_dec", "b_dec", *biases) if name not in arrays]
    if missing:
        raise PackError(f"a {variant.architecture} autoencoder needs the tensors {', '.join(missing)}")
    if len(arrays.shape("b_dec")) != 1 or len(arrays.shape(biases[0])) != 1:
        raise PackError("the biases of an autoencoder must be vectors")
    width, count = arrays.shape("b_dec")[0], arrays.shape(biases[0])[0]
    expected = {"W_enc": (width, count), "W_dec": (count, width), **dict.fromkeys(biases, (count,))}
    for name, shape in expected.items():
        if arrays.shape(name) != shape:
            turned = "; it is stored transposed" if arrays.shape(name) == shape[::-1] else ""
            raise PackError(f"{name} must be {list(shape)}, got {list(arrays.shape(name))}{turned}")
    return width, count


def _check_choice(chosen: Sequence[int], count: int) -> None:
    if not 0 < len(chosen) <= MAX_RANK or len(set(chosen)) != len(chosen):
        raise ConfigurationError(f"name 1 to {MAX_RANK} different features of the autoencoder")
    outside = [feature for feature in chosen if not 0 <= feature < count]
    if outside:
        raise ConfigurationError(f"the autoencoder has the features 0..{count - 1}, not {outside[0]}")


def _variant(config: Mapping[str, object]) -> Variant:
    normalised = config.get("normalize_activations", "none")
    if normalised not in ("none", None):
        reason = (
            "fold its scaling factor first (SAELens: fold_activation_norm_scaling_factor)"
            if normalised == "expected_average_only_in"
            else "it depends on each activation and has no affine form"
        )
        raise PackError(f"the autoencoder normalises its input ({normalised}): {reason}")
    if config.get("reshape_activations", "none") not in ("none", None) or config.get("hook_head_index") is not None:
        raise PackError("the autoencoder reads attention heads; only the residual stream is served")
    if config.get("finetuning_scaling_factor"):
        raise PackError("the autoencoder has a fine-tuned output scale, which is not served")
    architecture = str(config.get("architecture", "standard"))
    activation = str(config.get("activation_fn_str", config.get("activation_fn", "relu")))
    if architecture == "standard" and activation == "topk":
        architecture = "topk"
    elif activation not in ("relu", "topk"):
        raise PackError(f"the activation {activation} is not served")
    if architecture not in ("standard", "gated", "topk", *_JUMPRELU):
        raise PackError(f"the architecture {architecture} is not served")
    norms = bool(config.get("rescale_acts_by_decoder_norm", False)) and architecture not in ("standard", "jumprelu")
    return Variant(architecture, bool(config.get("apply_b_dec_to_input", True)), norms)


def _site(config: Mapping[str, object]) -> Site | None:
    name = config.get("hook_name")
    if not isinstance(name, str):
        return None
    found = _HOOKS.fullmatch(name)
    if found is None:
        raise PackError(f"the autoencoder reads {name[:80]!r}; only the residual stream between layers is served")
    if found["layer"] is not None:
        return Site(int(found["layer"]), "resid_post")
    layer = int(found["block"]) - (found["end"] == "pre")
    if layer < 0:
        raise PackError("the autoencoder reads the token embeddings, before the first layer")
    return Site(layer, "resid_post")


def _read_config(path: Path) -> Mapping[str, object]:
    """The configuration with the sections that newer versions nest laid flat."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise PackError(f"{path.name} cannot be read") from exc
    if not isinstance(config, Mapping):
        raise PackError(f"{path.name} is not an object")
    nested = [section for name in ("meta", "metadata") if isinstance(section := config.get(name), Mapping)]
    return {key: value for section in (*nested, config) for key, value in section.items()}
