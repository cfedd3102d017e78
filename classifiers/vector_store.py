"""Sentence vectors on disk: SQLite, found by a keyed digest of their text, the longest unused ones dropped first.

Holds vectors and digests, no text: without the key file next to it nobody can test whether some text is among them.
Only a cache: what cannot be read or written is computed again, and a damaged file is replaced.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import structlog

Vectors = np.ndarray[Any, np.dtype[np.float32]]
KEY_BYTES = 32
# 0.8 GB of all-MiniLM-L6-v2: ten texts for each of 40,000 tenants
MOST_VECTORS = 400_000
_KEY_FILE = "digest.key"
# files of the format before: one for each build
_OLD = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.(safetensors|partial)")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, digest BLOB UNIQUE, used INTEGER, vector BLOB);
CREATE INDEX IF NOT EXISTS by_use ON vectors (used, id);
"""
# another process may write at this moment; a request rather computes a vector than waits for it
_LOCK_WAIT_S = 0.2
_PER_QUERY = 500
_DAY_S = 86400
# of the most, dropped at once when there are too many
_DROPPED_SHARE = 0.1
_UNIT_TOLERANCE = 1e-3

log = structlog.get_logger("guard.detector")


class VectorStore:
    """One file of mode 0600 for each encoder. Not thread-safe; the folder is made with mode 0700 on first use."""

    def __init__(self, folder: Path, label: str, *, most: int = MOST_VECTORS) -> None:
        self._folder = folder
        self._path = folder / f"{label}.sqlite3"
        self._most = most
        self._connection: sqlite3.Connection | None = None
        self._count = 0

    def key(self) -> bytes:
        """The secret of the digests, made on first use. Whoever comes second takes the first one's. Raises OSError."""
        path = self._folder / _KEY_FILE
        if not path.is_file() or path.stat().st_size != KEY_BYTES:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial = self._folder / f"{_KEY_FILE}-{secrets.token_hex(8)}"
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
            if path.is_file():
                # a damaged key is replaced: its vectors are never found again, which only costs time
                partial.rename(path)
            else:
                with suppress(FileExistsError):
                    os.link(partial, path)
                partial.unlink()
        return path.read_bytes()

    def get(self, keys: Sequence[bytes], *, touch: bool = False) -> dict[bytes, Vectors]:
        """Vectors of those of `keys` that are stored; `touch` marks them as used today."""
        found: dict[bytes, Vectors] = {}
        stale: list[tuple[int, int]] = []
        damaged: list[tuple[int]] = []
        today = int(time.time() // _DAY_S)
        try:
            for start in range(0, len(keys), _PER_QUERY):
                asked = keys[start : start + _PER_QUERY]
                marks = ",".join("?" * len(asked))
                rows = self._open().execute(
                    f"SELECT id, digest, used, vector FROM vectors WHERE digest IN ({marks})", asked
                )
                for row, digest, used, data in rows:
                    vector = _vector(data)
                    if vector is None:
                        damaged.append((row,))
                        continue
                    found[digest] = vector
                    if used < today:
                        stale.append((today, row))
            if damaged or (touch and stale):
                with self._open() as connection:
                    connection.executemany("DELETE FROM vectors WHERE id = ?", damaged)
                    connection.executemany("UPDATE vectors SET used = ? WHERE id = ?", stale)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)
        return found

    def add(self, vectors: dict[bytes, Vectors]) -> None:
        """Store those of `vectors` that are not stored yet."""
        today = int(time.time() // _DAY_S)
        rows = [(digest, today, vector.astype("<f4", copy=False).tobytes()) for digest, vector in vectors.items()]
        try:
            with self._open() as connection:
                before = connection.total_changes
                connection.executemany(
                    "INSERT OR IGNORE INTO vectors (digest, used, vector) VALUES (?, ?, ?)", rows
                )
                self._count += connection.total_changes - before
                if self._count > self._most:
                    self._drop_unused(connection)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._folder.iterdir():
                if _OLD.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            # SQLite gives its other files the mode of this one
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            self._path.chmod(0o600)
            connection = sqlite3.connect(self._path, timeout=_LOCK_WAIT_S, check_same_thread=False)
            try:
                connection.execute("PRAGMA page_size = 8192")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_SCHEMA)
                (self._count,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _drop_unused(self, connection: sqlite3.Connection) -> None:
        (count,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
        surplus = count - self._most
        if surplus > 0:
            surplus += int(self._most * _DROPPED_SHARE)
            connection.execute(
                "DELETE FROM vectors WHERE id IN (SELECT id FROM vectors ORDER BY used, id LIMIT ?)", (surplus,)
            )
            surplus = min(surplus, count)
        self._count = count - max(surplus, 0)

    def _give_up(self, error: Exception) -> None:
        """Go on without the file this time; a damaged one is replaced at the next use."""
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        log.warning("vectors_not_cached", error=type(error).__name__, damaged=damaged)
        with suppress(sqlite3.Error):
            self.close()
        if damaged:
            for suffix in ("", "-wal", "-shm", "-journal"):
                with suppress(OSError):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)


def _vector(data: Any) -> Vectors | None:
    """The vector of a row; None when it is damaged."""
    if not isinstance(data, bytes) or not data or len(data) % 4:
        return None
    vector = np.frombuffer(data, "<f4").astype(np.float32)
    length = float(np.linalg.norm(vector))
    return vector if abs(length - 1.0) < _UNIT_TOLERANCE else None

