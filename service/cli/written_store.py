"""What commands that change the store say about it: where it is, and whether the server in this folder reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def tell_store(store: Any, home: Path, deed: str) -> None:
    """Say on standard error that `deed` was done in `store`; warn when the server that runs in `home` reads another."""
    from guard.service.store.running import announced, same_store

    server = announced(home)
    if server is None:
        typer.echo(f"{deed} in the store {store.location}", err=True)
    elif same_store(server.store, store.location):
        typer.echo(f"{deed} in the store {store.location}, which the server at {server.address} reads", err=True)
    else:
        typer.echo(f"{deed} in the store {store.location}", err=True)
        typer.echo(
            f"guard: warning: the server at {server.address} (process {server.pid}) reads another store, "
            f"{server.store}, and does not see this; give the command the --database-url (GUARD_DATABASE_URL) of "
            "the server",
            err=True,
        )
