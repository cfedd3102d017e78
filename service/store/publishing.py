"""Writing tenants into the store: their rows, and the immutable versions of their policies and lists.

Statements work on many tenants at once: a file of 10,000 tenants is a few hundred statements, not fifty thousand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Table, bindparam, func, insert, select, update

from guard.errors import TenantFileError
from guard.policy import Tenant, TenantSpec, tenant_of
from guard.service.store import audit, tables
from guard.service.store.revisions import chunks

ChangeKind = Literal["created", "updated", "unchanged"]


@dataclass(frozen=True, slots=True)
class Change:
    """What publishing did to one tenant."""

    tenant: str
    index: int
    kind: ChangeKind
    targets: int
    policy_version: str


def publish_tenants(connection: Connection, specs: Sequence[TenantSpec], actor: str) -> tuple[Change, ...]:
    """Create or replace tenants in the caller's transaction. `specs` name packs by content hash.

    Tenants whose versions are those of the store cost a comparison. Raises TenantFileError for a tenant that is there
    twice.
    """
    _refuse_repeated(specs)
    # SQLite counts from 1 as well; index 0 stays free for requests without a tenant
    unused = (connection.execute(select(func.max(tables.tenant.c.number))).scalar() or 0) + 1
    changes: list[Change] = []
    for some in chunks(specs):
        rows = _rows(connection, [spec.name for spec in some])
        taken = []
        for spec in some:
            row = rows.get(spec.name)
            tenant = tenant_of(spec, unused if row is None else row.number)
            unused += row is None
            taken.append((tenant, _kind(tenant, row)))
        _write(connection, [(tenant, kind) for tenant, kind in taken if kind != "unchanged"], rows, actor)
        changes += [
            Change(tenant.name, tenant.index, kind, len(tenant.targets), tenant.policy_version)
            for tenant, kind in taken
        ]
    return tuple(changes)


def _refuse_repeated(specs: Sequence[TenantSpec]) -> None:
    seen: set[str] = set()
    for number, spec in enumerate(specs):
        if spec.name in seen:
            raise TenantFileError("this tenant is in the file twice", field=f"tenants[{number}].name")
        seen.add(spec.name)


def _rows(connection: Connection, names: Sequence[str]) -> dict[str, Row[Any]]:
    found = connection.execute(select(tables.tenant).where(tables.tenant.c.name.in_(names)))
    return {row.name: row for row in found}


def _kind(tenant: Tenant, row: Row[Any] | None) -> ChangeKind:
    if row is None or row.deleted_s is not None:
        return "created"
    same = (row.policy_version, row.list_version) == (tenant.policy_version, tenant.list_version)
    return "unchanged" if same else "updated"


def _write(
    connection: Connection, changed: Sequence[tuple[Tenant, ChangeKind]], rows: Mapping[str, Row[Any]], actor: str
) -> None:
    table, now_s = tables.tenant, time.time()
    tenants = [tenant for tenant, _ in changed]
    new = [tenant for tenant in tenants if tenant.name not in rows]
    old = [tenant for tenant in tenants if tenant.name in rows]
    _insert(connection, table, (
        {"number": tenant.index, "name": tenant.name, "created_s": now_s, **_versions(tenant)} for tenant in new
    ))
    if old:
        moved = update(table).where(table.c.number == bindparam("index")).values(deleted_s=None)
        connection.execute(moved, [{"index": tenant.index, **_versions(tenant)} for tenant in old])
    _add_lists(connection, tenants, now_s)
    _add_policies(connection, tenants, now_s)
    audit.record_many(connection, actor, [
        (f"tenant.{'create' if kind == 'created' else 'update'}", tenant.name,
         {**_versions(tenant), "targets": len(tenant.targets)})
        for tenant, kind in changed
    ])


def _versions(tenant: Tenant) -> dict[str, str]:
    return {"policy_version": tenant.policy_version, "list_version": tenant.list_version}


def _add_lists(connection: Connection, tenants: Sequence[Tenant], now_s: float) -> None:
    known = _known_versions(connection, tables.forget_list, tenants)
    _insert(connection, tables.forget_list, (
        {"tenant_index": tenant.index, "version": tenant.list_version, "content": _list_content(tenant),
         "targets": len(tenant.targets), "created_s": now_s}
        for tenant in tenants if (tenant.index, tenant.list_version) not in known
    ))


def _add_policies(connection: Connection, tenants: Sequence[Tenant], now_s: float) -> None:
    known = _known_versions(connection, tables.policy, tenants)
    _insert(connection, tables.policy, (
        {"tenant_index": tenant.index, "version": tenant.policy_version, "list_version": tenant.list_version,
         "content": tenant.policy.model_dump_json(), "created_s": now_s}
        for tenant in tenants if (tenant.index, tenant.policy_version) not in known
    ))


def _known_versions(connection: Connection, table: Table, tenants: Sequence[Tenant]) -> set[tuple[int, str]]:
    query = select(table.c.tenant_index, table.c.version)
    found = connection.execute(query.where(table.c.tenant_index.in_([tenant.index for tenant in tenants])))
    return {(row.tenant_index, row.version) for row in found}


def _list_content(tenant: Tenant) -> str:
    targets = [target.model_dump(mode="json") for target in tenant.targets]
    return json.dumps({"targets": targets, "benign": list(tenant.benign)}, ensure_ascii=False)


def _insert(connection: Connection, table: Table, rows: Iterable[Mapping[str, object]]) -> None:
    values = list(rows)
    if values:
        connection.execute(insert(table), values)
