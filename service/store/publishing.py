"""Writing a tenant into the store: its row, and the immutable versions of its policy and list."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, func, insert, select, update

from guard.policy import Tenant, TenantSpec, tenant_of
from guard.service.store import audit, tables

ChangeKind = Literal["created", "updated", "unchanged"]


@dataclass(frozen=True, slots=True)
class Change:
    """What publishing did to one tenant."""

    tenant: str
    index: int
    kind: ChangeKind
    targets: int
    policy_version: str


def publish_tenant(connection: Connection, spec: TenantSpec, actor: str) -> Change:
    """Create or replace a tenant in the caller's transaction. `spec` names packs by content hash."""
    table, now_s = tables.tenant, time.time()
    row = connection.execute(select(table).where(table.c.name == spec.name)).one_or_none()
    versions = tenant_of(spec, 0)
    same = row is not None and (row.policy_version, row.list_version, row.deleted_s) == (
        versions.policy_version, versions.list_version, None,
    )
    if row is not None and same:
        return Change(spec.name, row.number, "unchanged", len(spec.targets), versions.policy_version)
    current = {"policy_version": versions.policy_version, "list_version": versions.list_version}
    if row is None:
        # SQLite counts from 1 as well; index 0 stays free for requests without a tenant
        index = (connection.execute(select(func.max(table.c.number))).scalar() or 0) + 1
        connection.execute(insert(table).values(number=index, name=spec.name, created_s=now_s, **current))
    else:
        index = row.number
        connection.execute(update(table).where(table.c.number == index).values(deleted_s=None, **current))
    _add_versions(connection, spec, tenant_of(spec, index), now_s)
    kind: ChangeKind = "created" if row is None or row.deleted_s is not None else "updated"
    detail: dict[str, str | int] = {**current, "targets": len(spec.targets)}
    audit.record(connection, actor, f"tenant.{'create' if kind == 'created' else 'update'}", spec.name, detail)
    return Change(spec.name, index, kind, len(spec.targets), versions.policy_version)


def _add_versions(connection: Connection, spec: TenantSpec, tenant: Tenant, now_s: float) -> None:
    targets = [target.model_dump(mode="json") for target in spec.targets]
    content = json.dumps({"targets": targets, "benign": list(spec.benign)}, ensure_ascii=False)
    list_key = {"tenant_index": tenant.index, "version": tenant.list_version}
    policy_key = {"tenant_index": tenant.index, "version": tenant.policy_version}
    if connection.execute(select(tables.forget_list.c.version).filter_by(**list_key)).first() is None:
        values = {**list_key, "content": content, "targets": len(targets), "created_s": now_s}
        connection.execute(insert(tables.forget_list).values(values))
    if connection.execute(select(tables.policy.c.version).filter_by(**policy_key)).first() is None:
        values = {
            **policy_key, "list_version": tenant.list_version, "content": spec.policy.model_dump_json(),
            "created_s": now_s,
        }
        connection.execute(insert(tables.policy).values(values))
