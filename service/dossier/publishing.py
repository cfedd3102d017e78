"""A dossier on its way into a tenant's list: as a tenant file, and merged with the targets that are there."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

import yaml

from guard.classifiers.normalize import mask_form
from guard.policy import Target, Tenant, TenantFile, TenantSpec
from guard.service.files.tenant_file import parse_tenant_file

VERSION: Literal[1] = 1
# line breaks that YAML keeps in double quotes only
_RARE_BREAKS = re.compile("[\x85\u2028\u2029]")


def merged(tenant: Tenant, target: Target) -> tuple[TenantSpec, bool]:
    """The tenant with `target` added, or in the place of the target of the same name, and whether it replaces one.

    Policy, benign prompts and other targets stay. Names are the same when their mask forms are.
    """
    own = mask_form(target.name)
    kept: list[Target] = []
    replaced = False
    for each in tenant.targets:
        same = mask_form(each.name) == own
        if not same:
            kept.append(each)
        elif not replaced:
            kept.append(target)
            replaced = True
    if not replaced:
        kept.append(target)
    spec = TenantSpec(name=tenant.name, policy=tenant.policy, targets=tuple(kept), benign=tenant.benign)
    return spec, replaced


def valid_file(tenant: str, target: Target) -> str:
    """A tenant file with this one target. Raises TenantFileError for what `guard validate` would not accept."""
    content = {
        "version": VERSION,
        "tenants": [{"name": tenant, "targets": [target.model_dump(mode="json", exclude_defaults=True)]}],
    }
    head = (
        "# A dossier by `guard forget`. `guard apply` makes the targets of a file a tenant's whole list: to add this\n"
        "# one to others, use `guard forget --apply`, or copy it into the tenant's file.\n"
    )
    text = head + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    parse_tenant_file(text)
    return text


def file_name(name: str) -> str:
    """A file name for the dossier on `name`: letters and digits of any script, the rest as one dash."""
    plain = unicodedata.normalize("NFC", name)
    return (re.sub(r"[\W_]+", "-", plain).strip("-").casefold()[:80] or "dossier") + ".yaml"


def as_file(spec: TenantSpec) -> TenantFile:
    """A tenant file of one tenant."""
    return TenantFile(version=VERSION, tenants=(spec,))


class _Dumper(yaml.SafeDumper):
    """Writes every string so that it is read back as it was."""


def _written_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if _RARE_BREAKS.search(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _written_string)
