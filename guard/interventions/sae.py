"""Sparse-autoencoder features set to a value, with the error term kept.

Of the autoencoder only the r guarded features are needed: decoding is linear, so replacing f_S by f'_S in
decode(encode(x)) + error gives exactly x' = x + (f'_S - f_S) W_dec[S]; the decoder's bias and all other features
cancel.

    z_i = <encoder_i, x> + encoder_bias_i;   f_i = z_i if z_i > threshold_i else 0

  gate `own`    a feature that fires is set to `value` (clamping, arXiv 2410.19278 section 3)
  gate `any`    where one of the features fires all of them are set to `value` (DSG, arXiv 2504.08192; value = -c).
                DSG's test on the whole sequence, the share of tokens where a feature fires, is not part of the edit:
                the detector decides which requests are edited.

ReLU (threshold 0), JumpReLU and gated autoencoders have this form; `guard.packs.import_sae` folds their variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from guard.errors import ConfigurationError
from guard.interventions.fit_config import FitConfig, TextsConfig
from guard.interventions.method import FORGET_AND_RETAIN, Method
from guard.kernels.edit_formula import MAX_RANK, EditRow
from guard.packs.edit_format import Origin, Rows, checked, parameters_of, save_edit, tensors_by_site
from guard.packs.format import Pack
from guard.site import Site

if TYPE_CHECKING:
    from typing import Unpack

NAME = "sae"
MAX_VALUE = 1e6
TENSORS = {"encoder": 2, "encoder_bias": 1, "threshold": 1, "decoder": 2}
Gate = Literal["own", "any"]


class SaeConfig(BaseModel):
    """`value`: what an edited feature becomes, in the autoencoder's units; `gate`: see the module."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    value: Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE)]
    gate: Gate = "own"


class TrainingConfig(FitConfig):
    """The settings of `guard.fit.autoencoder`."""

    features: Annotated[int, Field(ge=2, le=1 << 20, description="Features of the autoencoder.")] = 1024
    active: Annotated[int, Field(ge=1, le=4096, description="Features per token, on average.")] = 16
    steps: Annotated[int, Field(ge=1, le=1_000_000, description="Training steps.")] = 1500
    batch: Annotated[int, Field(ge=2, le=65536, description="Tokens per step.")] = 1024
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0, description="Learning rate.")] = 1e-3


class ClampConfig(TextsConfig):
    """How features are chosen and what becomes of them. A feature's threshold is raised until it fires in at most
    `retain_texts` of the retain texts."""

    selection: Annotated[
        Literal["sparsity", "ratio"], Field(description="Features that are rare on retain texts, or DSG's ratio.")
    ] = "sparsity"
    retain_texts: Annotated[
        float, Field(ge=0.0, le=1.0, description="Most retain texts one feature may fire in, as a share; 1: any.")
    ] = 0.02
    count: Annotated[int, Field(ge=1, le=MAX_RANK, description="Most features chosen.")] = 16
    ratio_percentile: Annotated[float, Field(ge=0.0, le=100.0, description="`ratio`: percentile kept.")] = 95.0
    retain_sparsity: Annotated[
        float, Field(ge=0.0, le=1.0, description="`sparsity`: largest share of retain tokens.")
    ] = 0.01
    clamp: Annotated[
        float, Field(ge=0.0, le=1000.0, description="Push in residual norms; 0 switches features off.")
    ] = 0.3
    gate: Annotated[Gate, Field(description="A feature that fires is set, or all where one fires.")] = "own"


class SaeFitConfig(TrainingConfig, ClampConfig):
    """The settings of `guard.fit.sae`: training, choice of features, and the one site where the autoencoder reads."""

    site: Annotated[str, Field(description="Where the autoencoder reads: LAYER.resid_post.")]
    autoencoder: Annotated[
        Path | None,
        Field(exclude=True, description="Autoencoder of an earlier fit at this site; nothing is trained."),
    ] = None


@dataclass(frozen=True, slots=True)
class SaeFeatures:
    """Some features of an autoencoder: encoder [r, d] (columns of W_enc as rows), encoder_bias [r], threshold [r],
    decoder [r, d]."""

    encoder: Tensor
    encoder_bias: Tensor
    threshold: Tensor
    decoder: Tensor


def sae_config(value: float, gate: Gate) -> SaeConfig:
    """The configuration of an operator's choice. Raises ConfigurationError for a value out of bounds."""
    try:
        return SaeConfig(value=value, gate=gate)
    except ValidationError as exc:
        raise ConfigurationError(f"a feature's value must lie within +-{MAX_VALUE:g}, not {value}") from exc


def save_sae(path: Path, features: Mapping[Site, SaeFeatures], config: SaeConfig, **origin: Unpack[Origin]) -> Pack:
    """Write a pack of features. Raises PackError."""
    tensors = {site: {name: getattr(part, name) for name in TENSORS} for site, part in features.items()}
    return save_edit(path, NAME, tensors, config, rows, **origin)


def rows(pack: Pack) -> Rows:
    """read = encoder, write = decoder, gain -1, offset = value. Raises PackError."""
    config = parameters_of(pack, SaeConfig)
    return checked({
        site: clamp_row(SaeFeatures(**tensors), config) for site, tensors in tensors_by_site(pack, TENSORS).items()
    })


def clamp_row(features: SaeFeatures, config: SaeConfig) -> EditRow:
    """The edit row that sets `features` to the value of `config`; its shapes are not checked."""
    rank = features.encoder.shape[0]
    return EditRow(
        read=features.encoder, write=features.decoder, bias=features.encoder_bias, threshold=features.threshold,
        gain=torch.full((rank,), -1.0), offset=torch.full((rank,), config.value), any_gate=config.gate == "any",
    )


METHOD = Method(
    name=NAME, config=SaeFitConfig, fit="guard.fit.sae:run_fit_sae", rows=rows,
    paper=("2410.19278", "2504.08192", "2503.11127"), data=FORGET_AND_RETAIN,
    edit="sets the features of a concept in a sparse autoencoder",
    command=(
        "Train a sparse autoencoder on MODEL, choose the features of the forget texts of DATA and write their clamp."
    ),
)
