"""Turns what other programs fitted or published into packs for one model.

Where the pack comes from is written into its header: `fit_data_digest` is a SHA-256 over the SHA-256 of each
imported file, and the report names the format, the file and what was chosen from it. The pack is written only when it
fits the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import JsonValue
from torch import Tensor

from guard.errors import ConfigurationError, PackError
from guard.interventions.lineas import MapMethod, save_lineas
from guard.interventions.sae import SaeConfig, SaeFeatures, save_sae
from guard.interventions.steer import save_steer
from guard.packs.edit_format import Origin
from guard.packs.file_digest import file_digest
from guard.packs.fingerprint import model_fingerprint
from guard.packs.format import Pack
from guard.packs.import_formats import Format
from guard.packs.import_sae import CONFIG_FILE, WEIGHT_FILE, read_gemma_scope, read_saelens
from guard.packs.import_vectors import read_maps, read_vectors
from guard.packs.model_shape import ModelShape, model_shape, module_names
from guard.site import Site, parse_sites


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


@dataclass(frozen=True, slots=True)
class Imported:
    """What a source holds: `tensors` of its sites, whose last dimension is the hidden size; the `files` that were read;
    and how it becomes a pack at a path."""

    tensors: Mapping[Site, Tensor]
    files: Sequence[Path]
    save: Callable[[Path, Origin], Pack]


def import_pack(source_format: Format, source: Path, out: Path, *, model: Path, choice: Choice, licence: str) -> Pack:
    """Write the pack `out` for the model folder `model` from `source`.

    Raises PackError for a source that is damaged, cannot be served or does not fit the model, ConfigurationError for a
    choice that does not fit the source.
    """
    if out.exists():
        raise ConfigurationError(f"{out.name} exists already; choose another name for the pack")
    shape = model_shape(model)
    sites = parse_sites(choice.sites, shape.num_layers) if choice.sites else ()
    if source_format in _AUTOENCODERS:
        imported = _features(_AUTOENCODERS[source_format], source, sites, choice)
    else:
        if choice.features or choice.config is not None or choice.threshold is not None:
            raise ConfigurationError(
                f"features, value, gate and threshold are for autoencoders, not for {source_format}"
            )
        imported = _OTHERS[source_format](source, sites, model)
    _check_fits(imported.tensors, shape)
    return imported.save(out, _origin(source_format, source, imported.files, model, licence, choice.features))


def _vectors(source: Path, sites: Sequence[Site], model: Path) -> Imported:
    vectors = read_vectors(source, sites)
    return Imported(vectors, [source], lambda out, origin: save_steer(out, vectors, **origin))


def _maps(source: Path, sites: Sequence[Site], model: Path, *, method: MapMethod) -> Imported:
    maps = read_maps(source, sites, module_names(model))
    weights = {site: weight for site, (weight, _) in maps.items()}
    return Imported(weights, [source], lambda out, origin: save_lineas(out, maps, method=method, **origin))


def _features(read: AutoencoderReader, source: Path, sites: Sequence[Site], choice: Choice) -> Imported:
    config = choice.config
    if config is None:
        raise ConfigurationError("an autoencoder's features need the value that they are set to")
    own, features, files = read(source, choice)
    site = _one_site(own, sites)
    return Imported(
        {site: features.encoder}, files, lambda out, origin: save_sae(out, {site: features}, config, **origin)
    )


def _saelens(source: Path, choice: Choice) -> tuple[Site | None, SaeFeatures, Sequence[Path]]:
    own, features = read_saelens(source, choice.features, choice.threshold)
    return own, features, [source / CONFIG_FILE, source / WEIGHT_FILE]


def _gemma_scope(source: Path, choice: Choice) -> tuple[Site | None, SaeFeatures, Sequence[Path]]:
    if choice.threshold is not None:
        raise ConfigurationError("a threshold is for TopK autoencoders; Gemma Scope has its own")
    return None, read_gemma_scope(source, choice.features), [source]


# the site that the source names, the chosen features, and the files that were read
AutoencoderReader = Callable[[Path, Choice], "tuple[Site | None, SaeFeatures, Sequence[Path]]"]
_AUTOENCODERS: dict[Format, AutoencoderReader] = {"saelens": _saelens, "gemma-scope": _gemma_scope}
_OTHERS: dict[Format, Callable[[Path, Sequence[Site], Path], Imported]] = {
    "steer": _vectors, "lineas": partial(_maps, method="lineas"), "linear-act": partial(_maps, method="linear-act"),
}


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
    features: Sequence[int],
) -> Origin:
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(file_digest(file)))
    report: dict[str, JsonValue] = {"imported_from": source_format, "source": source.name}
    if features:
        report["features"] = list(features)
    return {
        "model_fingerprint": model_fingerprint(model), "fit_data_digest": digest.hexdigest(), "fit_report": report,
        "licence": licence,
    }
