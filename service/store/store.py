"""The tenant store: SQLite in WAL mode by default, PostgreSQL by URL.

Every change that a server must see raises the revision in the same transaction. Published policies and forget-lists
are immutable: their version is a hash of their content, which is checked whenever they are read. All methods raise
StoreError when the database cannot be read or written; nothing is ever half applied. Safe to use from several threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, Row, and_, insert, select, update

from guard.errors import StoreError
from guard.policy import Snapshot, Tenant, TenantFile
from guard.service.store import audit, tables
from guard.service.store.database import DATABASE_FILE, connect, create_sqlite_file, describe, store_errors
from guard.service.store.edit_resolution import resolve_edits
from guard.service.store.engine_record import EngineRecord, read_engine, write_engine
from guard.service.store.keys import ApiKey, generate_key, hash_key
from guard.service.store.pack_records import PackRecord, add_pack, read_packs, remove_pack, users_of
from guard.service.store.publishing import Change, publish_tenants
from guard.service.store.reading import Reading, read_store, read_tenant
from guard.service.store.revisions import (
    chunks,
    create_state,
    raise_revision,
    read_revision,
    schema_version,
    upgrade,
)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A stored key without its secret. Times are Unix seconds."""

    id: str
    tenant: str
    label: str
    created_s: float
    revoked_s: float | None


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """A tenant as listed: names, versions and counts, no terms."""

    name: str
    index: int
    targets: int
    keys: int
    action: str
    policy_version: str
    list_version: str


class Store:
    """The tenant store at `url` (a SQLAlchemy URL, or the path of a SQLite file); `pepper` keys the key hashes."""

    def __init__(self, url: str | Path, pepper: bytes) -> None:
        self._pepper = pepper
        self._engine: Engine = connect(url)
        self._writer = self._engine.execution_options(guard_writes=True)
        # the last snapshot: the next one reads only what has changed since
        self._last: Reading | None = None

    @property
    def location(self) -> str:
        """Where the store is, without password."""
        return describe(self._engine.url)

    def migrate(self) -> None:
        """Create the database and its tables where missing, add what an older version lacks.

        Raises StoreError for a store of a later version.
        """
        with store_errors(self.location, "set up"):
            create_sqlite_file(self._engine.url)
            with self._writer.begin() as connection:
                create_state(connection)
                upgrade(connection)
        self.revision()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def revision(self) -> int:
        """Number of the last change; one primary-key read."""
        with store_errors(self.location, "read"), self._engine.connect() as connection:
            return read_revision(connection)

    def snapshot(self) -> Snapshot:
        """All tenants and live keys, read in one transaction. Raises StoreError rather than leave anything out.

        After the first call only what has changed is read: the other tenants are the objects of the last snapshot.
        """
        with store_errors(self.location, "read"), self._engine.connect() as connection:
            self._last = reading = read_store(connection, self._last)
        return reading.snapshot

    def tenant(self, name: str) -> Tenant | None:
        """One tenant as the store has it now, or None."""
        with store_errors(self.location, "read"), self._engine.connect() as connection:
            read_revision(connection)
            return read_tenant(connection, name)

    def publish(self, file: TenantFile, *, actor: str = "") -> tuple[Change, ...]:
        """Create or replace the tenants of `file`, all of them or none; other tenants stay as they are.

        Names of packs become content hashes. Raises TenantFileError for packs that the store does not have or that the
        server that started last cannot apply.
        """
        with self._write() as connection:
            resolved = resolve_edits(file, read_packs(connection), read_engine(connection))
            changes = publish_tenants(connection, resolved.tenants, actor)
            touched = [change.index for change in changes if change.kind != "unchanged"]
            if touched:
                raise_revision(connection, touched)
        return changes

    def delete_tenant(self, name: str, *, actor: str = "") -> None:
        """Delete a tenant and revoke its keys. Its index stays taken."""
        with self._write() as connection:
            row = _find_tenant(connection, name)
            now_s = time.time()
            table, key = tables.tenant, tables.api_key
            connection.execute(update(table).where(table.c.number == row.number).values(deleted_s=now_s))
            live = and_(key.c.tenant_index == row.number, key.c.revoked_s.is_(None))
            revoked = connection.execute(update(key).where(live).values(revoked_s=now_s)).rowcount
            audit.record(connection, actor, "tenant.delete", name, {"revoked_keys": revoked})
            raise_revision(connection, [row.number])

    def tenants(self) -> tuple[TenantRecord, ...]:
        """All tenants by name, without their terms."""
        snapshot = self.snapshot()
        counts: dict[str, int] = {}
        for name in snapshot.keys.values():
            counts[name] = counts.get(name, 0) + 1
        return tuple(
            TenantRecord(
                tenant.name, tenant.index, len(tenant.targets), counts.get(tenant.name, 0), tenant.policy.action,
                tenant.policy_version, tenant.list_version,
            )
            for tenant in sorted(snapshot.tenants.values(), key=lambda tenant: tenant.name)
        )

    def create_key(self, tenant: str, *, label: str = "", actor: str = "") -> ApiKey:
        """Make a key for a tenant. The returned text is the only copy of it."""
        return self.create_keys([tenant], label=label, actor=actor)[0]

    def create_keys(self, tenants: Sequence[str], *, label: str = "", actor: str = "") -> tuple[ApiKey, ...]:
        """Make a key for each of `tenants`, all of them or none. The returned texts are their only copies."""
        fresh = tuple(generate_key() for _ in tenants)
        with self._write() as connection:
            indices = _indices(connection, tenants)
            now_s = time.time()
            rows = [
                {"id": key.id, "tenant_index": indices[tenant], "hash": hash_key(key.text, self._pepper),
                 "label": label[:200], "created_s": now_s}
                for tenant, key in zip(tenants, fresh, strict=True)
            ]
            if rows:
                connection.execute(insert(tables.api_key), rows)
                events = [("key.create", name, {"key": key.id}) for name, key in zip(tenants, fresh, strict=True)]
                audit.record_many(connection, actor, events)
                raise_revision(connection, sorted(set(indices.values())))
        return fresh

    def revoke_key(self, key_id: str, *, actor: str = "") -> None:
        """Revoke a key for good. Raises StoreError when no live key has this id."""
        key, table = tables.api_key, tables.tenant
        with self._write() as connection:
            live = and_(key.c.id == key_id, key.c.revoked_s.is_(None))
            join = key.join(table, key.c.tenant_index == table.c.number)
            owner = connection.execute(select(table.c.number, table.c.name).select_from(join).where(live)).first()
            if owner is None:
                raise StoreError("no live key has this id; `guard key list` shows the ids")
            connection.execute(update(key).where(live).values(revoked_s=time.time()))
            audit.record(connection, actor, "key.revoke", owner.name, {"key": key_id})
            raise_revision(connection, [owner.number])

    def list_keys(self, tenant: str | None = None) -> tuple[KeyRecord, ...]:
        """All keys, or those of one tenant, oldest first, revoked ones too."""
        key, table = tables.api_key, tables.tenant
        join = key.join(table, key.c.tenant_index == table.c.number)
        query = select(key.c.id, table.c.name, key.c.label, key.c.created_s, key.c.revoked_s).select_from(join)
        with store_errors(self.location, "read"), self._engine.connect() as connection:
            if tenant is not None:
                query = query.where(table.c.number == _find_tenant(connection, tenant).number)
            rows = connection.execute(query.order_by(key.c.created_s, key.c.id)).all()
        return tuple(KeyRecord(row.id, row.name, row.label, row.created_s, row.revoked_s) for row in rows)

    def add_pack(self, record: PackRecord, *, replace: bool = False, actor: str = "") -> bool:
        """Give a pack its name; False when it had it. Its file must be in place. Raises StoreError for a taken name."""
        with self._write() as connection:
            return add_pack(connection, record, replace=replace, actor=actor)

    def remove_pack(self, name: str, *, actor: str = "") -> str:
        """Forget a pack and return its content hash. Raises StoreError while a tenant's policy refers to it."""
        with self._write() as connection:
            return remove_pack(connection, name, actor=actor)

    def packs(self) -> tuple[PackRecord, ...]:
        """All packs by name."""
        with self._read_packs() as connection:
            return () if connection is None else read_packs(connection)

    def pack_needed(self, content_hash: str) -> bool:
        """Whether a name or the policy of a tenant refers to a pack."""
        with self._read_packs() as connection:
            if connection is None:
                return False
            named = any(record.content_hash == content_hash for record in read_packs(connection))
            return named or bool(users_of(connection, content_hash))

    def record_engine(self, record: EngineRecord) -> None:
        """Remember what the server that has just started can edit."""
        with self._write() as connection:
            write_engine(connection, record)

    def engine_record(self) -> EngineRecord | None:
        """What the server that started last can edit; None when none has started."""
        with self._read_packs() as connection:
            return None if connection is None else read_engine(connection)

    def audit_events(self, limit: int = 100, tenant: str | None = None) -> tuple[audit.AuditEvent, ...]:
        """The newest audit events, newest first; with `tenant` only those of the tenant with that name."""
        with store_errors(self.location, "read"), self._engine.connect() as connection:
            read_revision(connection)
            return audit.read_events(connection, limit, tenant)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with store_errors(self.location, "written"), self._writer.begin() as connection:
            read_revision(connection)
            upgrade(connection)
            yield connection

    @contextmanager
    def _read_packs(self) -> Iterator[Connection | None]:
        # None: a store of version 1, which nothing has been written to since; it has no packs
        with store_errors(self.location, "read"), self._engine.connect() as connection:
            read_revision(connection)
            yield connection if schema_version(connection) > 1 else None


def database_url(home: Path, url: str | None) -> str:
    """The given URL, or the SQLite file of `home`."""
    return url or str(home / DATABASE_FILE)


def _find_tenant(connection: Connection, name: str) -> Row[tuple[object, ...]]:
    table = tables.tenant
    row = connection.execute(select(table).where(table.c.name == name, table.c.deleted_s.is_(None))).one_or_none()
    if row is None:
        raise _unknown(name)
    return row


def _indices(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    table = tables.tenant
    indices: dict[str, int] = {}
    for some in chunks(names):
        live = and_(table.c.name.in_(some), table.c.deleted_s.is_(None))
        rows = connection.execute(select(table.c.name, table.c.number).where(live))
        indices.update({row.name: row.number for row in rows})
    for name in names:
        if name not in indices:
            raise _unknown(name)
    return indices


def _unknown(name: str) -> StoreError:
    return StoreError(f"there is no tenant {name}; `guard tenant list` shows them")
