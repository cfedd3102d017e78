"""Audit events: who did what to which tenant, and when. They hold versions, counts and key ids; never a term or key."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Mapping
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
    connection.execute(
        insert(tables.audit_event).values(
            time_s=time.time(), actor=actor[:200], action=action, tenant=tenant,
            detail=json.dumps(dict(detail or {}), sort_keys=True),
        )
    )


def read_events(connection: Connection, limit: int = 100) -> tuple[AuditEvent, ...]:
    """The newest `limit` events, newest first."""
    table = tables.audit_event
    rows = connection.execute(select(table).order_by(table.c.id.desc()).limit(limit))
    return tuple(AuditEvent(row.time_s, row.actor, row.action, row.tenant, json.loads(row.detail)) for row in rows)
