"""Turns what other programs fitted or published into packs for one model.

Where the pack comes from is written into its header: `fit_data_digest` is a SHA-256 over the SHA-256 of each
imported file, and the report names the format, the file and what was chosen from it. The pack is written only when it
fits the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import JsonValue
from torch import Tensor

from guard.errors import ConfigurationError, PackError
from guard.interventions.lineas import save_lineas
from guard.interventions.sae import SaeConfig, save_sae
from guard.interventions.steer import save_steer
from guard.packs.edit_format import Origin
from guard.packs.fingerprint import model_fingerprint
from guard.packs.format import Pack
from guard.packs.import_sae import CONFIG_FILE, WEIGHT_FILE, read_gemma_scope, read_saelens
from guard.packs.import_vectors import read_maps, read_vectors
from guard.packs.model_shape import ModelShape, model_shape, module_names
from guard.site import Site, parse_sites

Format = Literal["saelens", "gemma-scope", "steer", "lineas", "linear-act"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True, slots=True)
class Choice:
    """What is taken from a source and how it is applied.

    `sites`: as in `guard.site.parse_sites`, empty when the source says where it belongs. The rest is for autoencoders:
    `features` by index, `config` the value that they are set to, `threshold` the calibrated one of a TopK autoencoder.
    """

    sites: str = ""
    features: tuple[int, ...] = ()
    config: SaeConfig | None = None
    threshold: float | None = None


def import_pack(source_format: Format, source: Path, out: Path, *, model: Path, choice: Choice, licence: str) -> Pack:
    """Write the pack `out` for the model folder `model` from `source`.

    Raises PackError for a source that is damaged, cannot be served or does not fit the model, ConfigurationError for a
    choice that does not fit the source.
    """
    if out.exists():
        raise ConfigurationError(f"{out.name} exists already; choose another name for the pack")
    shape = model_shape(model)
    sites = parse_sites(choice.sites, shape.num_layers) if choice.sites else ()
    if source_format == "saelens" or source_format == "gemma-scope":
        return _import_features(source_format, source, out, model, shape, sites, choice, licence)
    if choice.features or choice.config is not None or choice.threshold is not None:
        raise ConfigurationError(f"features, value, gate and threshold are for autoencoders, not for {source_format}")
    if source_format == "steer":
        vectors = read_vectors(source, sites)
        _check_fits(vectors, shape)
        return save_steer(out, vectors, **_origin(source_format, source, [source], model, licence))
    maps = read_maps(source, sites, module_names(model))
    _check_fits({site: weight for site, (weight, _) in maps.items()}, shape)
    return save_lineas(
        out, maps, method=source_format, **_origin(source_format, source, [source], model, licence)
    )


def _import_features(
    source_format: Literal["saelens", "gemma-scope"], source: Path, out: Path, model: Path, shape: ModelShape,
    sites: Sequence[Site], choice: Choice, licence: str,
) -> Pack:
    if choice.config is None:
        raise ConfigurationError("an autoencoder's features need the value that they are set to")
    own: Site | None = None
    if source_format == "saelens":
        own, features = read_saelens(source, choice.features, choice.threshold)
        files = [source / CONFIG_FILE, source / WEIGHT_FILE]
    elif choice.threshold is not None:
        raise ConfigurationError("a threshold is for TopK autoencoders; Gemma Scope has its own")
    else:
        features, files = read_gemma_scope(source, choice.features), [source]
    site = _one_site(own, sites)
    _check_fits({site: features.encoder}, shape)
    origin = _origin(source_format, source, files, model, licence, features=choice.features)
    return save_sae(out, {site: features}, choice.config, **origin)


def _one_site(own: Site | None, named: Sequence[Site]) -> Site:
    """The site of an autoencoder, from its own configuration or from the caller."""
    if len(named) > 1 or (own is None and not named):
        raise ConfigurationError("an autoencoder belongs to one site; name it, such as 12.resid_post")
    if own is not None and named and named[0] != own:
        raise ConfigurationError(f"the autoencoder was trained at {own}, not at {named[0]}")
    return own if own is not None else named[0]


def _check_fits(tensors: Mapping[Site, Tensor], shape: ModelShape) -> None:
    for site, tensor in tensors.items():
        if site.layer >= shape.num_layers:
            raise PackError(f"site {site}: the model has the layers 0..{shape.num_layers - 1}")
        if tensor.shape[-1] != shape.width:
            raise PackError(f"site {site}: made for hidden size {tensor.shape[-1]}, the model has {shape.width}")


def _origin(
    source_format: Format, source: Path, files: Sequence[Path], model: Path, licence: str,
    features: Sequence[int] = (),
) -> Origin:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    report: dict[str, JsonValue] = {"imported_from": source_format, "source": source.name}
    if features:
        report["features"] = list(features)
    return {
        "model_fingerprint": model_fingerprint(model), "fit_data_digest": digest.hexdigest(), "fit_report": report,
        "licence": licence,
    }
