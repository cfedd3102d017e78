"""Packs that the store knows: a name for a content hash, and what the pack's header says.

The files lie under `GUARD_HOME/packs/HASH.safetensors` (`guard.service.store.pack_files`). A name can move to another
pack; stored policies keep the hash.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, Row, delete, insert, select

from guard.errors import StoreError
from guard.policy import STORED, Policy
from guard.service.store import audit, tables


@dataclass(frozen=True, slots=True)
class PackRecord:
    """A pack of the store. `rank` is the largest low rank of its sites, 0 for packs that are no edits.

    `header` is the pack's header as JSON, `created_s` Unix time.
    """

    name: str
    content_hash: str
    kind: str
    method: str
    sites: tuple[str, ...]
    rank: int
    model_fingerprint: str
    header: str
    created_s: float


def add_pack(connection: Connection, record: PackRecord, *, replace: bool, actor: str) -> bool:
    """Give `record` its name; False when the name belongs to this pack already.

    Raises StoreError when the name belongs to another pack and `replace` is not set.
    """
    table = tables.pack
    row = connection.execute(select(table).where(table.c.name == record.name)).one_or_none()
    if row is not None and row.content_hash == record.content_hash:
        return False
    if row is not None and not replace:
        raise StoreError(f"the name {record.name} belongs to the pack {row.content_hash[:16]}; --replace moves it")
    connection.execute(delete(table).where(table.c.name == record.name))
    connection.execute(
        insert(table).values(
            name=record.name, content_hash=record.content_hash, kind=record.kind, method=record.method,
            sites=json.dumps(record.sites), max_rank=record.rank, model_fingerprint=record.model_fingerprint,
            header=record.header, path=f"packs/{record.content_hash}.safetensors", created_s=record.created_s,
        )
    )
    detail = {"pack": record.name, "content_hash": record.content_hash}
    audit.record(connection, actor, "pack.add" if row is None else "pack.replace", "", detail)
    return True


def remove_pack(connection: Connection, name: str, *, actor: str) -> str:
    """Forget the name and return the content hash that it had.

    Raises StoreError for an unknown name, and while a tenant's policy refers to the hash and no other name has it.
    """
    table = tables.pack
    row = connection.execute(select(table).where(table.c.name == name)).one_or_none()
    if row is None:
        raise StoreError(f"there is no pack {name}; `guard pack list` shows them")
    connection.execute(delete(table).where(table.c.name == name))
    still_named = connection.execute(select(table.c.name).where(table.c.content_hash == row.content_hash)).first()
    users = users_of(connection, row.content_hash)
    if users and still_named is None:
        raise StoreError(f"the policy of {', '.join(users[:5])} refers to the pack {name}; change it first")
    audit.record(connection, actor, "pack.remove", "", {"pack": name, "content_hash": row.content_hash})
    return str(row.content_hash)


def read_packs(connection: Connection) -> tuple[PackRecord, ...]:
    """All packs by name."""
    rows = connection.execute(select(tables.pack).order_by(tables.pack.c.name)).all()
    return tuple(_record(row) for row in rows)


def users_of(connection: Connection, content_hash: str) -> tuple[str, ...]:
    """Names of the tenants whose current policy refers to a pack."""
    table, policy = tables.tenant, tables.policy
    join = table.join(
        policy, (policy.c.tenant_index == table.c.number) & (policy.c.version == table.c.policy_version)
    )
    query = select(table.c.name, policy.c.content).select_from(join).where(table.c.deleted_s.is_(None))
    found: Iterable[Row[tuple[str, str]]] = connection.execute(query.order_by(table.c.name))
    return tuple(row.name for row in found if content_hash in _packs_of(row.content))


def _packs_of(policy: str) -> set[str]:
    return {edit.pack for edit in Policy.model_validate_json(policy, context=STORED).edits}


def _record(row: Row[tuple[object, ...]]) -> PackRecord:
    return PackRecord(
        row.name, row.content_hash, row.kind, row.method, tuple(json.loads(row.sites)), row.max_rank,
        row.model_fingerprint, row.header, row.created_s,
    )
