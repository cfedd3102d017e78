"""`guard audit`: who changed what, and when."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from guard.service.cli.options import DEFAULT_HOME, AsJson, DatabaseUrl, Home, open_store


def show_audit_trail(
    tenant: Annotated[str | None, typer.Option(help="Only the events of this tenant, deleted ones too.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of events, from the newest back.")] = 50,
    home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "", as_json: AsJson = False,
) -> None:
    """Show the audit trail, newest event first: who did what to which tenant, key or pack.

    Events hold names, ids, versions and counts, never a forget term, a prompt or a key.
    """
    rows = [
        {"time": datetime.fromtimestamp(event.time_s, UTC).isoformat(timespec="seconds"), "actor": event.actor,
         "action": event.action, "tenant": event.tenant, "detail": event.detail}
        for event in open_store(home, database_url).audit_events(limit, tenant)
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        # one line each, whole: a table would cut the versions, and lines can be searched
        detail = " ".join(f"{key}={value}" for key, value in row.pop("detail").items())
        typer.echo("  ".join((*row.values(), detail)))
