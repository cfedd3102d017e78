"""`guard pack add`, `list` and `remove`: the packs that policies can name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guard.errors import ConfigurationError
from guard.service.cli.options import DEFAULT_HOME, AsJson, DatabaseUrl, Home, open_store
from guard.service.cli.tenants import show_rows

COLUMNS = ("name", "kind", "method", "rank", "sites", "content_hash")
SHOWN_HASH, SHOWN_SITES = 16, 3
PackName = Annotated[str, typer.Argument(metavar="NAME", help="Name of a pack in the store.")]


def add_pack(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="Pack folder or .safetensors file.")],
    name: Annotated[str, typer.Option(help="Name by which policies refer to the pack.")],
    replace: Annotated[bool, typer.Option("--replace", help="Move a name that belongs to another pack.")] = False,
    home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "",
) -> None:
    """Verify PACK, copy it into the home folder and give it a name in the store.

    Stored policies keep the pack that they were applied with: apply them again after a name has moved.
    """
    from pydantic import TypeAdapter, ValidationError

    from guard.policy import Identifier
    from guard.service.store.audit import command_line_actor
    from guard.service.store.pack_files import copy_pack, delete_pack, examine_pack

    try:
        TypeAdapter(Identifier).validate_python(name)
    except ValidationError:
        raise ConfigurationError("a pack's name has 1 to 63 lower-case letters, digits, `-` and `_`") from None
    loaded, record = examine_pack(pack, name)
    store = open_store(home, database_url, create=True)
    before = {known.name: known.content_hash for known in store.packs()}.get(name)
    copy_pack(loaded, home)
    added = store.add_pack(record, replace=replace, actor=command_line_actor())
    if before is not None and not store.pack_needed(before):
        delete_pack(home, before)
    typer.echo(f"{name}: {record.kind} {record.content_hash}{'' if added else ' (unchanged)'}")


def list_packs(home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "", as_json: AsJson = False) -> None:
    """List the packs of the store."""
    records = open_store(home, database_url).packs()
    rows = [
        {"name": record.name, "kind": record.kind, "method": record.method, "rank": record.rank,
         "sites": ",".join(record.sites) if as_json else _few(record.sites),
         "content_hash": record.content_hash if as_json else record.content_hash[:SHOWN_HASH],
         "model_fingerprint": record.model_fingerprint}
        for record in records
    ]
    show_rows(rows, COLUMNS, as_json)


def remove_pack(name: PackName, home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "") -> None:
    """Remove a pack from the store; refused while a tenant's policy refers to it."""
    from guard.service.store.audit import command_line_actor
    from guard.service.store.pack_files import delete_pack

    store = open_store(home, database_url)
    content_hash = store.remove_pack(name, actor=command_line_actor())
    if not store.pack_needed(content_hash):
        delete_pack(home, content_hash)
    typer.echo("removed")


def _few(sites: tuple[str, ...]) -> str:
    rest = len(sites) - SHOWN_SITES
    return ",".join(sites[:SHOWN_SITES]) + (f" and {rest} more" if rest > 0 else "")
