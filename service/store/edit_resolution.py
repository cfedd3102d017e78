"""Turns names of packs in policies into content hashes, and refuses what the store or the running server cannot do."""

from __future__ import annotations

from collections.abc import Sequence

from guard.edit_policy import EditPolicy
from guard.errors import TenantFileError
from guard.policy import TenantFile
from guard.service.store.engine_record import EngineRecord
from guard.service.store.pack_records import PackRecord

EDIT = "edit"
# what an engine says whose model has none, because it is not in a local folder
NO_FINGERPRINT = "fp1:" + "0" * 64


def resolve_edits(file: TenantFile, packs: Sequence[PackRecord], engine: EngineRecord | None) -> TenantFile:
    """`file` with a content hash in every `policy.edits[].pack`; `engine` None skips the checks against a server.

    Raises TenantFileError with the field's path for an unknown pack, a pack that is no edit, and a pack that the server
    that started last cannot apply.
    """
    known = {record.content_hash: record for record in packs} | {record.name: record for record in packs}
    tenants = []
    for number, tenant in enumerate(file.tenants):
        edits = []
        for index, edit in enumerate(tenant.policy.edits):
            field = f"tenants[{number}].policy.edits[{index}].pack"
            record = known.get(edit.pack)
            reason = _unusable(edit, record) or (_unservable(record, engine) if record and engine else None)
            if record is None or reason is not None:
                raise TenantFileError(reason or "unknown pack", field=field)
            edits.append(edit.model_copy(update={"pack": record.content_hash}))
        policy = tenant.policy.model_copy(update={"edits": tuple(edits)})
        tenants.append(tenant.model_copy(update={"policy": policy}))
    return file.model_copy(update={"tenants": tuple(tenants)})


def _unusable(edit: EditPolicy, record: PackRecord | None) -> str | None:
    if record is None:
        return (
            f"the store has no pack {edit.pack}; `guard pack list` shows the packs, `guard pack add` adds one, "
            "`guard fit recipes` makes those of recipes"
        )
    if record.kind != EDIT:
        return f"the pack {edit.pack} is of the kind {record.kind}, not an edit"
    return None


def _unservable(record: PackRecord, engine: EngineRecord) -> str | None:
    if engine.model_fingerprint == NO_FINGERPRINT:
        return "the served model is not in a local folder with safetensors files, so no pack can be known to fit it"
    if record.model_fingerprint != engine.model_fingerprint:
        return (
            f"the pack was made for the model {record.model_fingerprint}, the server runs {engine.model_fingerprint}; "
            "fit a pack for this model"
        )
    missing = [site for site in record.sites if site not in engine.sites]
    if missing:
        return (
            f"the pack edits sites that the server does not steer: {', '.join(missing)}; steerable: "
            f"{', '.join(engine.sites) or 'none'}; restart the server with --guard-sites"
        )
    if record.rank > engine.max_rank:
        return f"the pack has rank {record.rank}, the server takes {engine.max_rank}; restart it with --guard-max-rank"
    return None
