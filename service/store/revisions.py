"""The store's revision, and which tenants each change touched, so that a server reads again only what has changed.

A server that has read revision R later reads the tenants that changed after R. That is right only while the database is
the one it read then: one that was replaced by a copy has another history. Every change therefore leaves a random mark
beside its revision, and a reader that no longer finds its mark reads everything again.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from sqlalchemy import Connection, delete, insert, select, update

from guard.errors import StoreError
from guard.service.store import tables

# a reader that is further behind reads everything
KEPT_MARKS = 10_000
# values in one statement; SQLite takes 32,766 since 3.32 and 999 before
CHUNK = 500

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in the history of one database: `mark` is empty for a store that version 2 wrote last."""

    revision: int
    mark: str


def chunks(items: Iterable[Item], size: int = CHUNK) -> Iterator[tuple[Item, ...]]:
    """`items` in tuples of at most `size`."""
    rest = iter(items)
    while taken := tuple(islice(rest, size)):
        yield taken


def create_state(connection: Connection) -> None:
    """Make the table of the revision and its row where they are missing."""
    tables.state.create(connection, checkfirst=True)
    if connection.execute(select(tables.state.c.schema_version)).scalar() is None:
        # every version so far has only added tables, so that one step brings any of them up to date
        connection.execute(insert(tables.state).values(id=1, schema_version=0, revision=1))


def upgrade(connection: Connection) -> None:
    """Bring the tables of an older version up to date, in the transaction of the first write."""
    if schema_version(connection) < tables.SCHEMA_VERSION:
        tables.metadata.create_all(connection)
        connection.execute(update(tables.state).values(schema_version=tables.SCHEMA_VERSION))
        if not _mark_of(connection, revision := read_revision(connection)):
            _leave_mark(connection, revision)


def read_revision(connection: Connection) -> int:
    """Number of the last change. Raises StoreError for an empty store and for one of a later version."""
    row = connection.execute(select(tables.state)).one_or_none()
    if row is None:
        raise StoreError("the store is empty; run `guard apply FILE` first")
    if row.schema_version > tables.SCHEMA_VERSION:
        raise StoreError(f"the store has schema {row.schema_version}, this program reads {tables.SCHEMA_VERSION}")
    return int(row.revision)


def schema_version(connection: Connection) -> int:
    """Version of the tables; see `tables.SCHEMA_VERSION`."""
    return int(connection.execute(select(tables.state.c.schema_version)).scalar_one())


def read_moment(connection: Connection) -> Moment:
    """Where the history of the store is now."""
    revision = read_revision(connection)
    return Moment(revision, _mark_of(connection, revision) if _has_marks(connection) else "")


def follows(connection: Connection, moment: Moment) -> bool:
    """Whether the store has grown out of what it was at `moment`, and still knows what has changed since then."""
    return bool(moment.mark) and _has_marks(connection) and _mark_of(connection, moment.revision) == moment.mark


def changed_since(connection: Connection, revision: int) -> tuple[int, ...]:
    """Indices of the tenants that changed after `revision`, deleted ones too."""
    change = tables.tenant_change
    return tuple(connection.execute(select(change.c.tenant_index).where(change.c.revision > revision)).scalars())


def raise_revision(connection: Connection, touched: Sequence[int]) -> None:
    """Count one change, of the tenants with the indices `touched`, in the caller's transaction."""
    state, change, mark = tables.state, tables.tenant_change, tables.revision_mark
    # the row is taken before it is read: writers that collide must not both count from the same number
    connection.execute(update(state).values(revision=state.c.revision + 1))
    revision = connection.execute(select(state.c.revision)).scalar_one()
    _leave_mark(connection, revision)
    connection.execute(delete(mark).where(mark.c.revision <= revision - KEPT_MARKS))
    for some in chunks(touched):
        connection.execute(delete(change).where(change.c.tenant_index.in_(some)))
        connection.execute(insert(change), [{"tenant_index": index, "revision": revision} for index in some])


def _has_marks(connection: Connection) -> bool:
    return schema_version(connection) >= 3


def _mark_of(connection: Connection, revision: int) -> str:
    mark = tables.revision_mark
    return connection.execute(select(mark.c.mark).where(mark.c.revision == revision)).scalar() or ""


def _leave_mark(connection: Connection, revision: int) -> None:
    connection.execute(insert(tables.revision_mark).values(revision=revision, mark=secrets.token_hex(16)))
