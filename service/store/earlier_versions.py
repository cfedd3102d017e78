"""Versions of what releases stored that hashed every field, also those that were never set.

Today's versions leave out what is as it was never set, so that a field of a later release changes no version. Those
that were stored before are the hash of what was stored.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any


def earlier_versions(policy: str, forget: str) -> tuple[str, str]:
    """Versions of a stored policy (with its list) and of a stored list, as releases before gave them."""
    content: dict[str, Any] = json.loads(forget)
    targets = "\n".join(map(_compact, content["targets"])) + "\x1e" + "\n".join(content["benign"])
    list_version = hashlib.sha256(targets.encode()).hexdigest()[:16]
    fields: dict[str, Any] = json.loads(policy)
    if not fields.get("edits"):
        fields.pop("edits", None)
    return hashlib.sha256((_compact(fields) + list_version).encode()).hexdigest()[:16], list_version


def _compact(value: Any) -> str:
    """JSON as pydantic writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
