"""Pack files of the store: verified copies under `GUARD_HOME/packs`, named by content hash."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guard.errors import ConfigurationError, PackError
from guard.interventions.edits import edit_rows
from guard.packs.format import Pack, load_pack, save_pack
from guard.service.store.edit_resolution import EDIT
from guard.service.store.pack_records import PackRecord

FOLDER = "packs"


def pack_path(home: Path, content_hash: str) -> Path:
    """Where the file of a pack lies."""
    return home / FOLDER / f"{content_hash}.safetensors"


def examine_pack(path: Path, name: str) -> tuple[Pack, PackRecord]:
    """Load and verify a pack, and describe it for the store. Raises PackError."""
    pack = load_pack(path)
    header = pack.header
    rank = max(row.rank for row in edit_rows(pack).values()) if header.kind == EDIT else 0
    record = PackRecord(
        name, pack.content_hash, header.kind, header.method, header.sites, rank, header.model_fingerprint,
        header.model_dump_json(), time.time(),
    )
    return pack, record


def copy_pack(pack: Pack, home: Path) -> Path:
    """Write the pack into the store's folder (mode 0600) unless it is there and whole. Raises ConfigurationError."""
    target = pack_path(home, pack.content_hash)
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _whole(target, pack.content_hash):
            with _temporary(target.parent) as temporary:
                save_pack(temporary, pack.header, pack.tensors)
                temporary.chmod(0o600)
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
                # a server that reads the folder sees the whole file or none
                temporary.replace(target)
    except OSError as error:
        raise ConfigurationError(f"the pack cannot be written to {target.parent}: {error.strerror}") from error
    return target


def delete_pack(home: Path, content_hash: str) -> None:
    """Delete the file of a pack that nothing refers to any more; a missing one is fine."""
    pack_path(home, content_hash).unlink(missing_ok=True)


def _whole(path: Path, content_hash: str) -> bool:
    with contextlib.suppress(PackError):
        return path.exists() and load_pack(path).content_hash == content_hash
    return False


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".adding-") as own:
        yield Path(own) / "pack.safetensors"
