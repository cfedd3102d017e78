"""LinEAS and Linear-AcT: one affine map per channel, T(x) = weight * x + bias.

Sources: LinEAS arXiv 2503.10679, Linear-AcT arXiv 2410.23054. Strength s blends with the identity,
(1 + s * (weight - 1)) * x + s * bias, which is the edit formula with scale = weight - 1 and shift = bias.

Both papers put maps at norm outputs (`attn_norm`, `mlp_norm`). Linear-AcT's quantile mask (identity outside the range
of activations seen while fitting) is not affine and is not served: a served Linear-AcT map acts on every activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from torch import Tensor

from guard.errors import PackError
from guard.interventions.fit_config import SamplePooling, SteeringConfig
from guard.interventions.method import SOURCE_AND_TARGET, Method, distance_to_target
from guard.kernels.edit_formula import EditRow
from guard.packs.edit_format import NoParameters, Origin, Rows, checked, parameters_of, save_edit, tensors_by_site
from guard.packs.format import Pack
from guard.site import Site

if TYPE_CHECKING:
    from typing import Unpack

NAME = "lineas"
MapMethod = Literal["lineas", "linear-act"]
TENSORS = {"weight": 1, "bias": 1}


class LineasConfig(SteeringConfig):
    """The settings of `guard.fit.lineas`; with `standardise`, penalty and learning rate are in the targets' units."""

    steps: Annotated[int, Field(ge=1, le=1_000_000, description="Steps of the descent.")] = 1000
    samples: Annotated[int, Field(ge=2, le=4096, description="Source and target texts of a step.")] = 32
    optimizer: Annotated[Literal["sgd", "adam"], Field(description="Descent.")] = "sgd"
    learning_rate: Annotated[float, Field(gt=0.0, le=10.0, description="First one; it decays to 0.")] = 0.1
    gamma: Annotated[float, Field(ge=0.0, description="Weight of the sparse-group lasso.")] = 0.0
    lambda_l1: Annotated[float, Field(ge=0.0, description="Its part for single channels.")] = 1.0
    lambda_group: Annotated[float, Field(ge=0.0, description="Its part for whole sites.")] = 1.0
    # the paper's algorithm prints `constant`; `step` is proximal gradient descent
    kappa: Annotated[
        Literal["step", "constant"], Field(description="Proximal step: gamma times the learning rate, or gamma.")
    ] = "step"
    standardise: Annotated[bool, Field(description="Fit in units of the targets' spread; not in the paper.")] = False
    pooling: Annotated[SamplePooling, Field(description="A sample: mean of a text, or each token.")] = "mean"
    checkpoint_steps: Annotated[int, Field(ge=1, description="Steps per saved state.")] = 100


def save_lineas(
    path: Path, maps: Mapping[Site, tuple[Tensor, Tensor]], *, method: MapMethod = "lineas", **origin: Unpack[Origin]
) -> Pack:
    """Write a pack of maps (weight [d], bias [d]). Raises PackError."""
    tensors = {site: {"weight": weight, "bias": bias} for site, (weight, bias) in maps.items()}
    return save_edit(path, method, tensors, NoParameters(), rows, **origin)


def rows(pack: Pack) -> Rows:
    """scale = weight - 1 in float32, shift = bias. Raises PackError."""
    parameters_of(pack, NoParameters)
    found = {}
    for site, tensors in tensors_by_site(pack, TENSORS).items():
        if tensors["weight"].shape != tensors["bias"].shape:
            raise PackError(f"site {site}: weight and bias differ in length")
        found[site] = EditRow(scale=tensors["weight"].float() - 1.0, shift=tensors["bias"])
    return checked(found)


METHOD = Method(
    name=NAME, config=LineasConfig, fit="guard.fit.lineas:run_fit_lineas", rows=rows, paper=("2503.10679",),
    data=SOURCE_AND_TARGET, edit="affine map per channel, by gradient descent through the model",
    command="Fit affine maps end to end (LinEAS) from the source texts of DATA to its target texts.",
    outcome=distance_to_target,
)
