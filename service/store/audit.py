"""Audit events: who did what to which tenant, and when. They hold versions, counts and key ids; never a term or key."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from guard.service.store import tables


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One event. `time_s` is Unix time; `detail` holds ids, versions and counts only."""

    time_s: float
    actor: str
    action: str
    tenant: str
    detail: dict[str, str | int]


def command_line_actor() -> str:
    """`cli:<user>` of this process."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        # a container may run under a user id without a name
        return "cli:unknown"


def record(
    connection: Connection, actor: str, action: str, tenant: str, detail: Mapping[str, str | int] | None = None
) -> None:
    """Write one event in the caller's transaction, so that a change and its trace stand or fall together."""
    record_many(connection, actor, [(action, tenant, detail or {})])


def record_many(
    connection: Connection, actor: str, events: Sequence[tuple[str, str, Mapping[str, str | int]]]
) -> None:
    """Write events, each (action, tenant, detail), in their order and in the caller's transaction."""
    now_s = time.time()
    rows = [
        {"time_s": now_s, "actor": actor[:200], "action": action, "tenant": tenant,
         "detail": json.dumps(dict(detail), sort_keys=True)}
        for action, tenant, detail in events
    ]
    if rows:
        connection.execute(insert(tables.audit_event), rows)


def read_events(connection: Connection, limit: int = 100, tenant: str | None = None) -> tuple[AuditEvent, ...]:
    """The newest `limit` events, newest first; with `tenant` only those of the tenant with that name."""
    table = tables.audit_event
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    rows = connection.execute(query if tenant is None else query.where(table.c.tenant == tenant))
    return tuple(AuditEvent(row.time_s, row.actor, row.action, row.tenant, json.loads(row.detail)) for row in rows)
