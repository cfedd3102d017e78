"""Settings of the server: the command's options, then the environment (`GUARD_` and the field's name in capitals).

Every field has a description; the configuration page is made from them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guard.errors import ConfigurationError

PREFIX = "GUARD_"
NO_ENCODER = "none"


class Settings(BaseModel):
    """All settings; unknown `GUARD_*` variables are ignored, wrong values are refused at start."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Annotated[
        Path,
        Field(description="Folder for the tenant store, key pepper, packs, compiled automata and fitted strengths."),
    ] = Path(".guard")
    database_url: Annotated[
        str, Field(description="SQLAlchemy URL of the tenant store; empty: SQLite in `GUARD_HOME/guard.db`.")
    ] = ""
    encoder: Annotated[
        str,
        Field(description="Sentence encoder: `auto` (the local MiniLM package), a Hugging Face id or path, or `none`."),
    ] = "auto"
    fitted: Annotated[
        Path | None,
        Field(description="Fitted corruption pack; default: `eco` next to the model, then `GUARD_HOME/fitted/eco`."),
    ] = None
    reload_interval_s: Annotated[
        float, Field(gt=0.0, le=60.0, description="Seconds between looks at the tenant store's revision.")
    ] = 0.25
    residency_timeout_s: Annotated[
        float, Field(gt=0.0, le=600.0, description="Seconds that a request waits for its constraint and its packs.")
    ] = 20.0
    sites: Annotated[
        str,
        Field(description="Sites at which activation edits can apply (`--guard-sites`): `auto` (four layers spread "
                          "over the model), `all`, `none`, or a comma list of `LAYER.PLACE`, `FIRST-LAST.PLACE` and "
                          "`*.PLACE`, where the place is `resid_post`, `attn_norm`, `mlp_norm` or `*`."),
    ] = "auto"
    max_slots: Annotated[
        int,
        Field(ge=1, le=16384, description="Edit packs that can be resident in the engine (`--guard-max-slots`); their "
                                          "memory is taken before the cache is sized."),
    ] = 64
    max_rank: Annotated[
        int,
        Field(ge=16, le=32, multiple_of=16,
              description="Largest rank of a resident edit pack (`--guard-max-rank`): 16 or 32."),
    ] = 16
    max_lists: Annotated[
        int,
        Field(ge=1, le=65536, description="Forget-lists that can be resident in the engine at once; others wait for a "
                                          "slot."),
    ] = 1024
    lists_memory_mb: Annotated[
        int,
        Field(ge=16, description="Memory in MiB that compiled forget-lists may take in each process; least recently "
                                 "used ones leave first."),
    ] = 1024
    warm_tenants: Annotated[
        int,
        Field(ge=0, description="Tenants whose lists and detectors are made ready before the server says it is; the "
                                "others are made ready by their first request."),
    ] = 64
    detector_wait_s: Annotated[
        float,
        Field(ge=0.0, le=3600.0, description="Longest time that the start waits for the detectors of stored tenants."),
    ] = 150.0
    max_body_bytes: Annotated[
        int, Field(ge=1024, le=1 << 28, description="Largest request body in bytes; more is answered 413.")
    ] = 1 << 20
    body_timeout_s: Annotated[
        float, Field(gt=0.0, le=600.0, description="Seconds within which a request body must arrive.")
    ] = 30.0
    counter_interval_s: Annotated[
        float, Field(gt=0.0, le=600.0, description="Seconds between reads of the engine's enforcement counters.")
    ] = 2.0
    drain_timeout_s: Annotated[
        int, Field(ge=0, le=3600, description="Seconds that running requests get to finish after SIGTERM.")
    ] = 30
    log_level: Annotated[
        str, Field(pattern="^(debug|info|warning|error)$", description="Level of the guard's own log lines.")
    ] = "info"

    @property
    def store_url(self) -> str:
        """URL of the tenant store."""
        return self.database_url or f"sqlite:///{self.home.resolve() / 'guard.db'}"


def load_settings(environment: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None) -> Settings:
    """Settings from `options` (by field name), then from the environment; empty values count as not given.

    Raises ConfigurationError that names the variable.
    """
    source = os.environ if environment is None else environment
    variables = {name: source.get(PREFIX + name.upper()) for name in Settings.model_fields}
    # in this order: an option that was given stands over its variable
    both = [*variables.items(), *(options or {}).items()]
    try:
        return Settings.model_validate({name: value for name, value in both if value not in (None, "")})
    except ValidationError as error:
        first = error.errors()[0]
        variable = PREFIX + str(first["loc"][0]).upper()
        raise ConfigurationError(f"{variable}: {first['msg']}") from error
