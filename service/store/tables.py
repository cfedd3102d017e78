"""Tables of the tenant store. Published policies and forget-lists are never updated, only added."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

# 1: tenants, lists, policies, keys, audit; 2: packs and the engine's record; 3: marks of revisions, and which tenants
# changed when. Every version so far has only added tables.
SCHEMA_VERSION = 3

metadata = MetaData()

# one row: the revision grows in the same transaction as every change that a server must see
state = Table(
    "guard_state",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("schema_version", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
)

# a random mark for each of the newest revisions: a store that holds the mark of a revision read before has grown out of
# the store as it was then, and is not another one in its place
revision_mark = Table(
    "guard_revision_mark",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("mark", String(32), nullable=False),
)

# a deleted tenant keeps its row, so that its index is never given to another one
tenant = Table(
    "guard_tenant",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("policy_version", String(16), nullable=False),
    Column("list_version", String(16), nullable=False),
    Column("created_s", Float, nullable=False),
    Column("deleted_s", Float),
)

# the revision at which a tenant or one of its keys changed last
tenant_change = Table(
    "guard_tenant_change",
    metadata,
    Column("tenant_index", ForeignKey("guard_tenant.number"), primary_key=True),
    Column("revision", BigInteger, nullable=False, index=True),
)

forget_list = Table(
    "guard_forget_list",
    metadata,
    Column("tenant_index", ForeignKey("guard_tenant.number"), primary_key=True),
    Column("version", String(16), primary_key=True),
    Column("content", Text, nullable=False),
    Column("targets", Integer, nullable=False),
    Column("created_s", Float, nullable=False),
)

policy = Table(
    "guard_policy",
    metadata,
    Column("tenant_index", ForeignKey("guard_tenant.number"), primary_key=True),
    Column("version", String(16), primary_key=True),
    Column("list_version", String(16), nullable=False),
    Column("content", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    ForeignKeyConstraint(
        ["tenant_index", "list_version"], ["guard_forget_list.tenant_index", "guard_forget_list.version"]
    ),
)

api_key = Table(
    "guard_api_key",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("tenant_index", ForeignKey("guard_tenant.number"), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("label", String(200), nullable=False),
    Column("created_s", Float, nullable=False),
    Column("revoked_s", Float),
)

# a name for a pack; policies refer to the content hash, so that a name can move without changing them
pack = Table(
    "guard_pack",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("content_hash", String(64), nullable=False, index=True),
    Column("kind", String(20), nullable=False),
    Column("method", String(40), nullable=False),
    Column("sites", Text, nullable=False),
    Column("max_rank", Integer, nullable=False),
    Column("model_fingerprint", String(80), nullable=False),
    Column("header", Text, nullable=False),
    Column("path", String(200), nullable=False),
    Column("created_s", Float, nullable=False),
)

# one row: what the server that started last can edit
engine = Table(
    "guard_engine",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sites", Text, nullable=False),
    Column("max_slots", Integer, nullable=False),
    Column("max_rank", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("num_layers", Integer, nullable=False),
    Column("model_fingerprint", String(80), nullable=False),
    Column("started_s", Float, nullable=False),
)

audit_event = Table(
    "guard_audit_event",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("time_s", Float, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("action", String(40), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("detail", Text, nullable=False),
    Index("guard_audit_time", "time_s"),
)
