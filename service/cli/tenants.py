"""`guard key` and `guard tenant`: API keys and the tenants of the store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from guard.policy import TenantFile
from guard.service.cli.options import DEFAULT_HOME, AsJson, DatabaseUrl, Home, console, open_store, stored_tenant

keys = typer.Typer(help="API keys.", no_args_is_help=True)
tenants = typer.Typer(help="Tenants of the store.", no_args_is_help=True)

TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant.")]


@keys.command("create")
def create_key(
    tenant: TenantName,
    label: Annotated[str, typer.Option(help="A note on who holds the key.")] = "",
    home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "", as_json: AsJson = False,
) -> None:
    """Make an API key for TENANT and print it: this is the only time it is shown."""
    from guard.service.cli.written_store import tell_store
    from guard.service.store.audit import command_line_actor

    store = open_store(home, database_url)
    key = store.create_key(tenant, label=label, actor=command_line_actor())
    if as_json:
        typer.echo(json.dumps({"id": key.id, "tenant": tenant, "key": key.text}))
    else:
        # the key alone goes to standard output, so that a script can take it
        typer.echo(key.text)
        typer.echo(f"Key {key.id} of tenant {tenant}. It is stored as a hash and cannot be shown again.", err=True)
    tell_store(store, home, "Made")


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Argument(metavar="[TENANT]", help="Only the keys of this tenant.")] = None,
    home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "", as_json: AsJson = False,
) -> None:
    """List keys by id; secrets are not stored."""
    records = open_store(home, database_url).list_keys(tenant)
    rows = [
        {"id": record.id, "tenant": record.tenant, "label": record.label, "created": _time(record.created_s),
         "revoked": _time(record.revoked_s)}
        for record in records
    ]
    show_rows(rows, ("id", "tenant", "label", "created", "revoked"), as_json)


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="Id of the key, as `guard key list` shows it.")],
    home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "",
) -> None:
    """Revoke a key; running servers refuse it within a second."""
    from guard.service.cli.written_store import tell_store
    from guard.service.store.audit import command_line_actor
    from guard.service.store.keys import key_id_of

    store = open_store(home, database_url)
    # somebody who has the key at hand may paste it whole
    store.revoke_key(key_id_of(key_id) or key_id, actor=command_line_actor())
    typer.echo("revoked")
    tell_store(store, home, "Revoked")


@tenants.command("list")
def list_tenants(home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "", as_json: AsJson = False) -> None:
    """List tenants with the index under which metrics show them."""
    rows = [asdict(record) for record in open_store(home, database_url).tenants()]
    show_rows(rows, ("name", "index", "action", "targets", "keys", "policy_version", "list_version"), as_json)


@tenants.command("show")
def show_tenant(
    tenant: TenantName,
    home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "",
    terms: Annotated[bool, typer.Option("--terms", help="Also print the forget-list itself.")] = False,
) -> None:
    """Print the policy and versions of TENANT as JSON; the forget-list only with --terms."""
    found = stored_tenant(home, database_url, tenant)
    shown = {
        "name": found.name, "index": found.index, "policy_version": found.policy_version,
        "list_version": found.list_version, "policy": found.policy.model_dump(mode="json"),
        "targets": len(found.targets),
    }
    if terms:
        shown["targets"] = [target.model_dump(mode="json", exclude_defaults=True) for target in found.targets]
    typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))


@tenants.command("delete")
def delete_tenant(
    tenant: TenantName,
    home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete TENANT and revoke its keys. Its index is never given to another tenant."""
    from guard.service.cli.written_store import tell_store
    from guard.service.store.audit import command_line_actor

    if not yes:
        typer.confirm(f"Delete tenant {tenant} and revoke its keys?", abort=True)
    store = open_store(home, database_url)
    store.delete_tenant(tenant, actor=command_line_actor())
    typer.echo("deleted")
    tell_store(store, home, "Deleted")


def show_warnings(file: TenantFile, text: str) -> None:
    """Print on standard error which names of a tenant file cost something; they are accepted all the same."""
    from guard.service.files.name_warnings import name_warnings

    for warning in name_warnings(file, text):
        typer.echo(f"guard: warning: {warning.error()}", err=True)


def show_rows(rows: Sequence[Mapping[str, object]], columns: Sequence[str], as_json: bool) -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        typer.echo(json.dumps(list(rows), indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), no_wrap=True)
    for row in rows:
        # Text, because names and labels must not be read as markup
        table.add_row(*(Text(str(row[column])) for column in columns))
    console().print(table)


def _time(time_s: float | None) -> str:
    return "" if time_s is None else datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
