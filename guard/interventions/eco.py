"""ECO, embedding-corrupted prompts: the typed configuration, its pack, and the strength fitted for a model.

Source: arXiv 2406.07933. The maths is in `guard.kernels.corrupt`; the strength is found by `guard.fit.eco`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor

from guard.errors import PackError
from guard.packs.format import Pack, PackHeader, load_pack, save_pack
from guard.plan import CorruptionKind

METHOD = "eco"
SITE = "embedding"
Scope = Literal["spans", "prompt"]


class EcoConfig(BaseModel):
    """How flagged prompts are corrupted; field meanings as in `guard.plan.Corruption`.

    `scope`: `spans` corrupts the tokens that name a target (the last user turn when there are none), `prompt` every
    ordinary token of the prompt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: CorruptionKind = "gauss"
    rho: Annotated[float, Field(ge=0.0, le=1000.0)]
    dims: Annotated[int, Field(ge=0, le=65536)] = 0
    scope: Scope = "prompt"


@dataclass(frozen=True, slots=True)
class FittedCorruption:
    """The corruption that was fitted for one model. `pack` is the content hash it came from."""

    kind: CorruptionKind
    rho: float
    dims: int
    scope: Scope
    model_fingerprint: str
    pack: str


@dataclass(frozen=True, slots=True)
class FitCurve:
    """Evaluated strengths and their scores, kept in the pack as tensors float32 [N]."""

    rho: tuple[float, ...]
    score: tuple[float, ...]

    def tensors(self) -> dict[str, Tensor]:
        return {
            "fit_rho": torch.tensor(self.rho, dtype=torch.float32),
            "fit_score": torch.tensor(self.score, dtype=torch.float32),
        }


def save_eco(
    path: Path, config: EcoConfig, *, model_fingerprint: str, fit_data_digest: str, fit_report: Mapping[str, JsonValue],
    curve: FitCurve, licence: str,
) -> FittedCorruption:
    """Write a corruption pack and return what it says. Raises PackError."""
    header = PackHeader(
        kind="corruption", method=METHOD, model_fingerprint=model_fingerprint, sites=(SITE,),
        parameters=config.model_dump(mode="json"), fit_data_digest=fit_data_digest, fit_report=dict(fit_report),
        licence=licence,
    )
    return fitted_corruption(save_pack(path, header, curve.tensors()))


def load_eco(path: Path, *, model_fingerprint: str) -> FittedCorruption:
    """Read a corruption pack made for the model `model_fingerprint`. Raises PackError."""
    return fitted_corruption(load_pack(path, model_fingerprint=model_fingerprint))


def fitted_corruption(pack: Pack) -> FittedCorruption:
    """What a pack says about corruption. Raises PackError when it is another kind of pack."""
    header = pack.header
    if header.kind != "corruption" or header.method != METHOD:
        raise PackError(f"a {header.kind} pack of the method {header.method} is not a corruption pack")
    try:
        config = EcoConfig.model_validate(header.parameters)
    except ValidationError as exc:
        raise PackError(f"the corruption parameters do not validate: {exc.error_count()} errors") from exc
    return FittedCorruption(
        kind=config.kind, rho=config.rho, dims=config.dims, scope=config.scope,
        model_fingerprint=header.model_fingerprint, pack=pack.content_hash,
    )
