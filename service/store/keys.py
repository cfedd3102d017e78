"""API keys: form, generation, hashing and the pepper.

A key reads `gk_<id>_<secret>`: 12 hex digits that may be logged and 192 secret bits. Only HMAC-SHA256(pepper, key) is
stored, so a stolen database without the pepper file is worth nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from guard.errors import ConfigurationError

MAX_KEY_CHARACTERS = 128
PEPPER_BYTES = 32
PEPPER_FILE = "pepper"

_KEY_FORM = re.compile(r"gk_([0-9a-f]{12})_[0-9a-f]{48}", re.ASCII)


@dataclass(frozen=True, slots=True, repr=False)
class ApiKey:
    """A fresh key in the clear: to be shown once and forgotten. `text` is what the client sends."""

    id: str
    text: str

    def __repr__(self) -> str:
        return f"ApiKey({mask_key(self.text)})"


def generate_key() -> ApiKey:
    """Make a random key."""
    key_id = secrets.token_hex(6)
    return ApiKey(key_id, f"gk_{key_id}_{secrets.token_hex(24)}")


def key_id_of(text: str) -> str | None:
    """Public id of a key, or None when `text` does not have the form of a key."""
    match = _KEY_FORM.fullmatch(text) if len(text) <= MAX_KEY_CHARACTERS else None
    return match.group(1) if match else None


def mask_key(text: str) -> str:
    """A key as logs may show it: its id, never its secret."""
    key_id = key_id_of(text)
    return f"gk_{key_id}_***" if key_id else "***"


def hash_key(key: str, pepper: bytes) -> str:
    """Hex HMAC-SHA256 under which a key is stored and looked up."""
    return hmac.new(pepper, b"api-key\x1f" + key.encode(errors="replace"), hashlib.sha256).hexdigest()


def find_tenant(key: str, hashes: Mapping[str, str], pepper: bytes) -> str | None:
    """Tenant name that `key` belongs to by `hashes` (`Snapshot.keys`), or None.

    The lookup is by a keyed hash, of which a caller controls no bit, so its time tells nothing about stored keys; a
    text without the form of a key is refused before it is hashed.
    """
    if key_id_of(key) is None:
        return None
    return hashes.get(hash_key(key, pepper))


def load_pepper(home: Path, *, create: bool = True) -> bytes:
    """Read the pepper of `home` (32 bytes, hex, mode 0600), making folder and file the first time when `create`.

    Raises ConfigurationError when it is missing (without `create`), damaged, or open to other users.
    """
    path = home / PEPPER_FILE
    try:
        if create and not path.exists():
            _create_pepper(home, path)
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise ConfigurationError(f"no pepper at {path}; run `guard apply` with the same --home first") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the pepper {path} cannot be read or made: {_reason(error)}") from error
    if mode & 0o077:
        raise ConfigurationError(f"the pepper {path} is open to other users (mode {mode & 0o777:o}); chmod 600 it")
    if re.fullmatch(rf"[0-9a-f]{{{2 * PEPPER_BYTES}}}", text) is None:
        raise ConfigurationError(f"the pepper {path} is damaged; restore it, or delete it and make new keys")
    return bytes.fromhex(text)


def _create_pepper(home: Path, path: Path) -> None:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = home / f".{PEPPER_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(PEPPER_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        # link, not rename: of two processes that start together the first wins and both read the same pepper
        os.link(draft, path)
    except FileExistsError:
        return
    finally:
        draft.unlink()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
