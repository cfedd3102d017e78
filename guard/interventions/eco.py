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
from guard.interventions.fit_config import FitConfig
from guard.interventions.method import FitData, Method
from guard.packs.format import Pack, PackHeader, load_pack, save_pack
from guard.plan import CorruptionKind

NAME = "eco"
SITE = "embedding"
Scope = Literal["spans", "prompt"]
Metric = Literal["log_probability", "rouge"]


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


class EcoFitConfig(FitConfig):
    """The settings of `guard.fit.eco`. The score to reach is `target`, or the mean over `retain_records`."""

    target: Annotated[float | None, Field(description="Score that the corrupted model should reach.")] = None
    retain_records: Annotated[
        Path | None,
        Field(exclude=True, description="Per-question records of a retain model, whose mean is the target score."),
    ] = None
    records_split: Annotated[str | None, Field(exclude=True, description="Only the records of this split.")] = None
    metric: Annotated[Metric, Field(description="What is compared.")] = "log_probability"
    kind: Annotated[CorruptionKind, Field(description="Corruption function.")] = "gauss"
    scope: Annotated[Scope, Field(description="Tokens that are corrupted.")] = "prompt"
    dims: Annotated[int, Field(ge=0, le=65536, description="Corrupted dimensions, 0 for all.")] = 0
    rho_low: Annotated[float, Field(gt=0.0, le=1000.0, description="Smallest strength tried.")] = 0.1
    rho_high: Annotated[float, Field(gt=0.0, le=1000.0, description="Largest strength tried.")] = 40.0
    grid_points: Annotated[int, Field(ge=2, description="Strengths tried first, evenly spaced in log rho.")] = 9
    refine_steps: Annotated[int, Field(ge=0, description="Bisections between the two best of them.")] = 5
    noise_seeds: Annotated[int, Field(ge=1, description="Draws of the noise that a score is the mean of.")] = 2
    held_out_share: Annotated[
        float, Field(ge=0.0, le=1.0, description="Share of the questions that only the report sees.")
    ] = 0.5
    max_questions: Annotated[int, Field(ge=2, description="Most questions used.")] = 200
    tolerance: Annotated[float, Field(ge=0.0, description="Distance to the score at which the search ends.")] = 0.005


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
        kind="corruption", method=NAME, model_fingerprint=model_fingerprint, sites=(SITE,),
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
    if header.kind != "corruption" or header.method != NAME:
        raise PackError(f"a {header.kind} pack of the method {header.method} is not a corruption pack")
    try:
        config = EcoConfig.model_validate(header.parameters)
    except ValidationError as exc:
        raise PackError(f"the corruption parameters do not validate: {exc.error_count()} errors") from exc
    return FittedCorruption(
        kind=config.kind, rho=config.rho, dims=config.dims, scope=config.scope,
        model_fingerprint=header.model_fingerprint, pack=pack.content_hash,
    )


def fitted_strength(pack: Pack) -> str:
    """The strength that a fit found, for its last line."""
    return f"rho {fitted_corruption(pack).rho:g}"


METHOD = Method(
    name=NAME, config=EcoFitConfig, fit="guard.fit.eco:run_fit_eco", rows=None, paper=("2406.07933",),
    data=FitData("questions and answers", "JSON Lines with `question` and `answer` (and `paraphrase`)."),
    edit="noise on the embeddings of prompt tokens",
    command="Find the corruption strength at which MODEL knows as little about DATA as a model that never saw it.",
    outcome=fitted_strength,
)
