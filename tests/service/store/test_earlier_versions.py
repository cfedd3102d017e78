"""A store of an earlier release, whose policies and targets had fewer fields, stays readable."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from guard.errors import StoreError
from guard.policy import DetectorPolicy, Policy, Target, TenantFile, TenantSpec, tenant_of
from guard.service.store.store import Store

PEPPER = b"p" * 32
# what release 0.1.0 stored before there were answers and kinds
POLICY = (
    '{"action":"forget","failure_mode":"closed","detector":{"mode":"auto","alpha":0.02,"lexical":true,"semantic":true,'
    '"head":true,"timeout_s":5.0},"corruption":{"enabled":true,"kind":"gauss","rho":null,"dims":0,"scope":null},'
    '"constraint":{"enabled":true},"edits":[],"output":{"enabled":true,"semantic":false,"semantic_threshold":0.85,'
    '"max_rollbacks":2},"max_choices":4}'
)
LIST = (
    '{"targets": [{"name": "Zoë \\"Z\\" O\'Neil", "aliases": ["ZO"], "description": "", "examples": ["Who?\\n"], '
    '"answers": ["She wrote \\"Ж\\"."], "forbid": null, "allow_echo": true}], "benign": ["Hello"]}'
)
VERSIONS = ("1784a8262f2068af", "f606bbf0cc206f46")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a store that holds what an earlier release wrote."""
    store = Store(tmp_path / "guard.db", PEPPER)
    store.migrate()
    target = Target(name='Zoë "Z" O\'Neil', aliases=("ZO",), examples=("Who?\n",), answers=('She wrote "Ж".',))
    policy = Policy(detector=DetectorPolicy(alpha=0.02))
    store.publish(TenantFile(tenants=(TenantSpec(name="acme", policy=policy, targets=(target,), benign=("Hello",)),)))
    with sqlite3.connect(tmp_path / "guard.db") as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("UPDATE guard_forget_list SET content = ?, version = ?", (LIST, VERSIONS[1]))
        connection.execute("UPDATE guard_policy SET content = ?, version = ?, list_version = ?", (POLICY, *VERSIONS))
        connection.execute("UPDATE guard_tenant SET policy_version = ?, list_version = ?", VERSIONS)
    return tmp_path


def test_what_an_earlier_release_stored_is_read_under_its_version(home: Path) -> None:
    tenant = Store(home / "guard.db", PEPPER).snapshot().tenants["acme"]
    assert (tenant.policy_version, tenant.list_version) == VERSIONS
    assert tenant.policy.detector.alpha == 0.02 and tenant.policy.answer.mode == "ignorance"
    assert tenant.targets[0].aliases == ("ZO",)


def test_what_was_altered_since_is_noticed(home: Path) -> None:
    with sqlite3.connect(home / "guard.db") as connection:
        connection.execute("UPDATE guard_policy SET content = replace(content, '0.02', '0.03')")
    with pytest.raises(StoreError, match="does not match its version"):
        Store(home / "guard.db", PEPPER).snapshot()


def test_a_field_that_is_as_if_never_set_changes_no_version() -> None:
    bare = TenantSpec(name="acme", targets=(Target(name="Zoë"),))
    written = TenantSpec(name="acme", policy=Policy(action="forget"), targets=(Target(name="Zoë", verbatim_words=8),))
    assert tenant_of(bare, 1).policy_version == tenant_of(written, 1).policy_version
