"""What the settings of all fits share. A method's own settings stand in its module.

Defaults, bounds and descriptions stand in the fields and nowhere else: options of `guard fit`, settings of recipes and
their documentation are made from them. A field with `exclude=True` is an option of the command only: it says where to
find something, decides nothing that is recorded, and no recipe has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Pooling = Literal["tokens", "mean", "last"]
SamplePooling = Literal["mean", "tokens"]
ModelDtype = Literal["float32", "bfloat16", "float16"]
MAX_LENGTH = 128
BATCH = 32
MAX_SEED = (1 << 32) - 1

Sites = Annotated[
    str,
    Field(description="Comma list of LAYER.PLACE, FIRST-LAST.PLACE or `*.PLACE`; `auto`: four layers over the model."),
]
HeldOutShare = Annotated[float, Field(ge=0.0, le=0.9, description="Share of the texts that only the report sees.")]


class FitConfig(BaseModel):
    """The settings of a fit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: Annotated[int, Field(ge=0, le=MAX_SEED, description="Seed of the split and of every random choice.")] = 0

    @classmethod
    def command_only(cls) -> frozenset[str]:
        """Names of the fields that are options of the command and no settings of a recipe."""
        return frozenset(name for name, field in cls.model_fields.items() if field.exclude)

    @classmethod
    def own_fields_first(cls) -> Iterator[str]:
        """Names of the fields, those of a class before those that it inherits."""
        listed: dict[str, None] = {}
        for kind in cls.__mro__:
            listed |= dict.fromkeys(name for name in vars(kind).get("__annotations__", {}) if name in cls.model_fields)
        return iter(listed)


class TextsConfig(FitConfig):
    """How the texts of a fit are read."""

    max_length: Annotated[int, Field(ge=1, le=65536, description="Tokens of a text that count.")] = MAX_LENGTH
    held_out_share: HeldOutShare = 0.2


class ConceptConfig(TextsConfig):
    """What the fits on forget and retain texts share that work at several sites."""

    sites: Sites = "auto"

    def recorded(self) -> dict[str, JsonValue]:
        """The settings as reports and packs hold them, which list the sites themselves."""
        return self.model_dump(mode="json", exclude={"sites"})


class SteeringConfig(TextsConfig):
    """What the fits on source and target texts share. The papers of both kinds of maps put them at norm outputs."""

    sites: Sites = "*.attn_norm,*.mlp_norm"
    batch: Annotated[int, Field(ge=1, le=4096, description="Texts per pass.")] = BATCH
    held_out_share: HeldOutShare = 0.25
