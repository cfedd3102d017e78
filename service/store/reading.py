"""Reading tenants and keys out of the store, all of them or those that changed since the last reading.

Versions are checked against the content whenever it is read. The server reads in a thread beside its event loop, so the
work is done in small steps: a list of 100,000 targets is never one call that holds the interpreter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, select

from guard.errors import StoreError
from guard.policy import STORED, Policy, Snapshot, Target, Tenant, TenantSpec, tenant_of
from guard.service.store import tables
from guard.service.store.earlier_versions import earlier_versions
from guard.service.store.revisions import Moment, changed_since, chunks, follows, read_moment

# tenants fetched at once
PAGE = 64
# while a server runs, reading stands aside for PAUSE_S after every WORK_S, so that the event loop gets its turns
WORK_S, PAUSE_S = 0.001, 0.0002
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Reading:
    """A snapshot, the moment at which it was taken, and the key hashes of each tenant in it by index."""

    snapshot: Snapshot
    moment: Moment
    keys_of: dict[int, tuple[str, ...]]


def read_store(connection: Connection, before: Reading | None) -> Reading:
    """What the store holds now; with the reading `before`, only what has changed since then is fetched.

    Tenants that have not changed are the same objects as in `before`. Raises StoreError rather than leave one out.
    """
    moment = read_moment(connection)
    if before is None:
        return _read_all(connection, moment, {})
    if not follows(connection, before.moment):
        return _read_all(connection, moment, before.snapshot.tenants)
    return before if moment == before.moment else _read_changes(connection, moment, before)


def read_tenant(connection: Connection, name: str) -> Tenant | None:
    """One tenant by name."""
    row = connection.execute(_tenants().where(tables.tenant.c.name == name)).one_or_none()
    return None if row is None else _tenant(row, {}, _Turn(yields=False))


def _read_all(connection: Connection, moment: Moment, known: Mapping[str, Tenant]) -> Reading:
    turn = _Turn(yields=bool(known))
    tenants = {tenant.name: tenant for tenant in _read_tenants(connection, _tenants(), known, turn)}
    keys: dict[int, tuple[str, ...]] = dict.fromkeys((tenant.index for tenant in tenants.values()), ())
    for index, hashed in _read_keys(connection, None):
        if index in keys:
            keys[index] += (hashed,)
    names = {tenant.index: tenant.name for tenant in tenants.values()}
    hashes = {hashed: names[index] for index, of_tenant in keys.items() for hashed in of_tenant}
    return Reading(Snapshot(moment.revision, tenants, hashes), moment, keys)


def _read_changes(connection: Connection, moment: Moment, before: Reading) -> Reading:
    changed = changed_since(connection, before.moment.revision)
    known = before.snapshot.tenants
    tenants, hashes, keys_of = known.copy(), before.snapshot.keys.copy(), before.keys_of.copy()
    turn = _Turn(yields=True)
    for some in chunks(changed):
        found = {
            tenant.index: tenant
            for tenant in _read_tenants(connection, _tenants().where(tables.tenant.c.number.in_(some)), known, turn)
        }
        live: dict[int, tuple[str, ...]] = dict.fromkeys(found, ())
        for index, hashed in _read_keys(connection, some):
            if index in live:
                live[index] += (hashed,)
        for index in some:
            for hashed in keys_of.pop(index, ()):
                del hashes[hashed]
        for name in _names(connection, some):
            tenants.pop(name, None)
        for index, tenant in found.items():
            tenants[tenant.name] = tenant
            keys_of[index] = live[index]
            hashes.update(dict.fromkeys(live[index], tenant.name))
    return Reading(Snapshot(moment.revision, tenants, hashes), moment, keys_of)


def _tenants() -> Select[Any]:
    """Every tenant that is not deleted, with its current policy and list; what is missing reads as None."""
    tenant, policy, forget = tables.tenant, tables.policy, tables.forget_list
    of_policy = and_(policy.c.tenant_index == tenant.c.number, policy.c.version == tenant.c.policy_version)
    of_list = and_(forget.c.tenant_index == tenant.c.number, forget.c.version == tenant.c.list_version)
    return (
        select(
            tenant.c.number, tenant.c.name, tenant.c.policy_version, tenant.c.list_version,
            policy.c.content.label("policy"), forget.c.content.label("forget"),
        )
        .select_from(tenant.outerjoin(policy, of_policy).outerjoin(forget, of_list))
        .where(tenant.c.deleted_s.is_(None))
    )


def _read_tenants(
    connection: Connection, query: Select[Any], known: Mapping[str, Tenant], turn: _Turn
) -> Iterator[Tenant]:
    for page in connection.execution_options(yield_per=PAGE).execute(query).partitions():
        for row in page:
            yield _tenant(row, known, turn)
            turn.end()


def _tenant(row: Row[Any], known: Mapping[str, Tenant], turn: _Turn) -> Tenant:
    same = known.get(row.name)
    versions = (row.number, row.policy_version, row.list_version)
    # versions are hashes of content, so a tenant that was parsed once is good for ever
    if same is not None and (same.index, same.policy_version, same.list_version) == versions:
        return same
    if row.policy is None or row.forget is None:
        raise StoreError(f"the stored list or policy of tenant {row.name} is missing")
    targets, benign = _list_content(row.forget, turn)
    spec = TenantSpec(name=row.name, policy=_policy(row.policy), targets=targets, benign=benign)
    tenant = tenant_of(spec, row.number)
    if (tenant.index, tenant.policy_version, tenant.list_version) == versions:
        return tenant
    if versions[1:] != earlier_versions(row.policy, row.forget):
        raise StoreError(f"the stored list or policy of tenant {row.name} does not match its version")
    return replace(tenant, policy_version=row.policy_version, list_version=row.list_version)


@lru_cache(maxsize=256)
def _policy(content: str) -> Policy:
    # most tenants share a few policies; they are frozen, so one object serves all
    return Policy.model_validate_json(content, context=STORED)


def _list_content(content: str, turn: _Turn) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """Targets and benign prompts of a stored list."""

    def take(value: dict[str, Any]) -> Any:
        # called for every object of the text, which also lets other threads run within one long list
        turn.end()
        return value if "targets" in value else Target.model_validate(value)

    parsed = json.loads(content, object_hook=take)
    return tuple(parsed["targets"]), tuple(parsed["benign"])


def _read_keys(connection: Connection, indices: Sequence[int] | None) -> Iterator[tuple[int, str]]:
    """(tenant index, hash) of the live keys of all tenants, or of some."""
    key = tables.api_key
    query = select(key.c.tenant_index, key.c.hash).where(key.c.revoked_s.is_(None)).order_by(key.c.id)
    found = connection.execute(query if indices is None else query.where(key.c.tenant_index.in_(indices)))
    return ((row.tenant_index, row.hash) for row in found)


def _names(connection: Connection, indices: Sequence[int]) -> Sequence[str]:
    table = tables.tenant
    return connection.execute(select(table.c.name).where(table.c.number.in_(indices))).scalars().all()


class _Turn:
    """A stretch of work that stands aside for other threads when it has lasted long enough, if it `yields`."""

    def __init__(self, *, yields: bool) -> None:
        self._yields = yields
        self._began_s = time.perf_counter()

    def end(self) -> None:
        """To be called between small steps."""
        if self._yields and time.perf_counter() - self._began_s > WORK_S:
            time.sleep(PAUSE_S)
            self._began_s = time.perf_counter()
