"""The digest of a file's bytes, however large the file is."""

from __future__ import annotations

import hashlib
from pathlib import Path

from guard.errors import ConfigurationError

_CHUNK_BYTES = 1 << 20


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file's bytes. Raises ConfigurationError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
