"""Packs, plans and prompts of the edit scenarios; the tests compute the expected numbers from the same values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from cases import prompt_ids

from guard.interventions.lineas import save_lineas
from guard.interventions.sae import SaeConfig, SaeFeatures, save_sae
from guard.interventions.steer import save_steer
from guard.interventions.subspace import save_subspace
from guard.packs.format import Pack
from guard.plan import EditLane
from guard.site import Site

WIDTH, LAYERS = 64, 2
TENANTS = 12
EDITED = prompt_ids(500, 40)
EDITED_LONG = prompt_ids(501, 150)
PHASE_TOKENS = 4


def _header(fingerprint: str) -> dict[str, Any]:
    return {
        "model_fingerprint": fingerprint, "fit_data_digest": "0" * 64, "fit_report": {}, "licence": "Apache-2.0",
    }


def _random(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def _steer(path: Path, fingerprint: str, seed: int = 1, sites: tuple[Site, ...] = (Site(1, "resid_post"),)) -> Pack:
    vectors = {site: _random(seed + site.layer, WIDTH, scale=0.5) for site in sites}
    return save_steer(path, vectors, **_header(fingerprint))


def _map(path: Path, fingerprint: str) -> Pack:
    sites = (Site(0, "attn_norm"), Site(1, "attn_norm"), Site(1, "mlp_norm"))
    maps = {
        site: (1 + _random(20 + place, WIDTH, scale=0.3), _random(30 + place, WIDTH, scale=0.2))
        for place, site in enumerate(sites)
    }
    return save_lineas(path, maps, method="lineas", **_header(fingerprint))


def _subspace(path: Path, fingerprint: str) -> Pack:
    basis = torch.linalg.qr(_random(40, WIDTH, 5)).Q.T.contiguous()
    site = Site(0, "resid_post")
    return save_subspace(path, {site: basis}, {site: _random(41, WIDTH)}, **_header(fingerprint))


def _sae(path: Path, fingerprint: str, gate: str, layer: int, count: int) -> Pack:
    features = SaeFeatures(
        encoder=_random(50, count, WIDTH), encoder_bias=_random(51, count), threshold=_random(52, count).abs(),
        decoder=_random(53, count, WIDTH, scale=0.2),
    )
    config = SaeConfig(value=-2.0, gate=gate)  # type: ignore[arg-type]
    return save_sae(path, {Site(layer, "resid_post"): features}, config, **_header(fingerprint))


# name -> how it is made; one pack for each method
METHODS: Mapping[str, Callable[[Path, str], Pack]] = {
    "steer": _steer,
    "map": _map,
    "subspace": _subspace,
    "clamp": lambda path, fingerprint: _sae(path, fingerprint, "own", 0, 7),
    "guardrail": lambda path, fingerprint: _sae(path, fingerprint, "any", 1, 3),
}
LANES = ("map", "subspace", "clamp", "steer")


def tenant_pack(folder: Path, fingerprint: str, tenant: int) -> tuple[Path, Pack]:
    """A pack of its own for each tenant, at two sites."""
    path = folder / f"tenant-{tenant}.safetensors"
    return path, _steer(path, fingerprint, 100 + 10 * tenant, (Site(0, "resid_post"), Site(1, "resid_post")))


def method_packs(folder: Path, fingerprint: str) -> dict[str, tuple[Path, Pack]]:
    """All packs of `METHODS`, written into `folder`."""
    packs = {}
    for name, make in METHODS.items():
        path = folder / f"{name}.safetensors"
        packs[name] = path, make(path, fingerprint)
    return packs


def lane(pack: Pack, strength: float = 1.0, phase: Any = "both") -> EditLane:
    """One lane of a plan."""
    return EditLane(pack=pack.content_hash, strength=strength, phase=phase)
