"""What the server that started last can edit, kept in the store so that `guard apply` can check packs against it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from guard.errors import EngineMismatchError
from guard.service.store import tables
from guard.site import Site


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """`sites` are steerable, in the order of layers; `max_slots` packs can be resident, of a rank up to `max_rank`.

    `model_fingerprint` is that of the served model, which every pack must carry.
    """

    sites: tuple[str, ...]
    max_slots: int
    max_rank: int
    width: int
    num_layers: int
    model_fingerprint: str


def engine_record(per_rank: Sequence[Mapping[str, Any]]) -> EngineRecord:
    """From the answers of all ranks to `guard_ping`: ranks of a pipeline steer different layers.

    Raises EngineMismatchError when the ranks disagree on anything else.
    """
    shared = {tuple(rank[name] for name in _SHARED) for rank in per_rank}
    if len(shared) != 1:
        raise EngineMismatchError("the ranks of the engine do not agree on the settings of activation edits")
    sites = sorted({Site.parse(text) for rank in per_rank for text in rank["sites"]})
    return EngineRecord(tuple(str(site) for site in sites), *shared.pop())


def write_engine(connection: Connection, record: EngineRecord) -> None:
    """Replace the record."""
    table = tables.engine
    connection.execute(delete(table))
    connection.execute(
        insert(table).values(
            id=1, sites=json.dumps(record.sites), max_slots=record.max_slots, max_rank=record.max_rank,
            width=record.width, num_layers=record.num_layers, model_fingerprint=record.model_fingerprint,
            started_s=time.time(),
        )
    )


def read_engine(connection: Connection) -> EngineRecord | None:
    """The record, or None when no server has started with this store."""
    row = connection.execute(select(tables.engine)).one_or_none()
    if row is None:
        return None
    return EngineRecord(
        tuple(json.loads(row.sites)), row.max_slots, row.max_rank, row.width, row.num_layers, row.model_fingerprint
    )


_SHARED = ("max_slots", "max_rank", "width", "num_layers", "fingerprint")
