"""The tenants of `bench/names.py`: one without a list, and the list of names once to forget and once to refuse.

The one that refuses tells which prompts are flagged: the server's headers do not, so that nobody can probe a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guard.policy import Policy, Target, TenantFile, TenantSpec
from guard.service.files.tenant_file import load_tenant_file
from guard.service.launch import open_store
from guard.service.settings import Settings


def publish(
    home: Path, prefix: str, subjects: Sequence[str], policy: Mapping[str, Any], dossiers: Path | None
) -> tuple[str, str, str]:
    """Publish PREFIX-open, PREFIX-forget and PREFIX-refuse; a new key for each. Raises TenantFileError, StoreError.

    `dossiers`: a tenant file; a target there with a subject's name replaces the bare name.
    """
    written = {}
    if dossiers is not None:
        written = {target.name: target for spec in load_tenant_file(dossiers).tenants for target in spec.targets}
    targets = tuple(written.get(name) or Target(name=name) for name in subjects)
    forget = Policy.model_validate(dict(policy))
    unanswered = {key: value for key, value in policy.items() if key != "answer"}
    refuse = Policy.model_validate(unanswered | {"action": "refuse"})
    specs = (
        TenantSpec(name=f"{prefix}-open"),
        TenantSpec(name=f"{prefix}-forget", policy=forget, targets=targets),
        TenantSpec(name=f"{prefix}-refuse", policy=refuse, targets=targets),
    )
    store, _ = open_store(Settings(home=home))
    store.publish(TenantFile(tenants=specs), actor="bench")
    first, second, third = store.create_keys([spec.name for spec in specs], label="bench", actor="bench")
    return first.text, second.text, third.text
