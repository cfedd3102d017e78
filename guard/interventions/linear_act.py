"""Linear-AcT: one affine map per channel, in closed form. Packs and rows are those of `guard.interventions.lineas`.

Source: arXiv 2410.23054.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from guard.interventions.fit_config import SamplePooling, SteeringConfig
from guard.interventions.lineas import rows
from guard.interventions.method import SOURCE_AND_TARGET, Method, distance_to_target


class LinearActConfig(SteeringConfig):
    """The settings of `guard.fit.linear_act`."""

    order: Annotated[
        Literal["incremental", "at_once"],
        Field(description="Each site after the maps before it, or all on the unchanged model."),
    ] = "incremental"
    pooling: Annotated[SamplePooling, Field(description="A sample: mean of a text, or each token.")] = "mean"


METHOD = Method(
    name="linear-act", config=LinearActConfig, fit="guard.fit.linear_act:run_fit_linear_act", rows=rows,
    paper=("2410.23054",), data=SOURCE_AND_TARGET, edit="affine map per channel, closed form",
    command="Fit affine maps in closed form (Linear-AcT) from the source texts of DATA to its target texts.",
    outcome=distance_to_target,
)
