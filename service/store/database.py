"""Connections to the store's database: one SQLAlchemy engine, with the settings each dialect needs."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from pydantic import ValidationError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from guard.errors import ConfigurationError, StoreError

DATABASE_FILE = "guard.db"
BUSY_TIMEOUT_MS = 2000


def connect(url: str | Path) -> Engine:
    """Engine for a SQLAlchemy URL or for the path of a SQLite file. Nothing is opened yet.

    Connections of `engine.execution_options(guard_writes=True)` start transactions that write. Raises
    ConfigurationError for a URL or driver that cannot work.
    """
    text = str(url)
    try:
        parsed = make_url(text) if "://" in text else URL.create("sqlite", database=text)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite_engine(parsed)
        if parsed.get_backend_name() == "postgresql":
            return _postgresql_engine(parsed)
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigurationError("the database URL must be like postgresql+psycopg://host/name") from error
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"the driver of the database URL is not installed: {error.name}") from error
    raise ConfigurationError(f"the store runs on sqlite or postgresql, not on {parsed.get_backend_name()}")


def describe(url: URL) -> str:
    """Where a database is, without password: the whole path of a SQLite file, or a URL."""
    if url.get_backend_name() == "sqlite":
        return str(Path(url.database or "").absolute())
    return url.render_as_string(hide_password=True)


def create_sqlite_file(url: URL) -> None:
    """Create the file of a SQLite URL (mode 0600) and its folder (0700) where missing; other databases: nothing."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    path = Path(url.database)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    with closing(_open_sqlite(_sqlite_location(url))) as connection:
        # WAL is a property of the file: readers go on while a writer commits
        connection.execute("PRAGMA journal_mode=WAL")


@contextmanager
def store_errors(location: str, deed: str) -> Iterator[None]:
    """Turn what a driver raises while the store at `location` is `deed` into a StoreError that repeats no value."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        # the message of the driver alone: SQLAlchemy adds the statement and its values, which hold terms
        reason = error if isinstance(error, sqlite3.Error) else getattr(error, "orig", None) or type(error).__name__
        raise StoreError(f"the tenant store {location} cannot be {deed}: {reason}") from None
    except (OSError, ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"the tenant store {location} cannot be {deed}: {type(error).__name__}") from None


def _sqlite_engine(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ConfigurationError("the SQLite store needs a file: several processes read it")
    location = _sqlite_location(url)
    # no pool: a file that was replaced must not be read through a connection to the old one
    engine = create_engine(
        url, poolclass=NullPool, hide_parameters=True,
        creator=lambda: _open_sqlite(location),
    )
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _sqlite_location(url: URL) -> str:
    # mode=rw: a connection must never create an empty database in place of a lost one
    return f"file:{quote(str(Path(url.database or '').absolute()))}?mode=rw"


def _open_sqlite(location: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        location, uri=True, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
    )
    try:
        for setting in ("foreign_keys=ON", "synchronous=FULL", "trusted_schema=OFF"):
            connection.execute(f"PRAGMA {setting}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE: a writer waits for the lock here, instead of failing later when it upgrades a read transaction
    writes = connection.get_execution_options().get("guard_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgresql_engine(url: URL) -> Engine:
    # one consistent view per transaction, as SQLite's WAL gives; writers that collide fail whole and can be retried
    return create_engine(
        url, hide_parameters=True, pool_pre_ping=True, pool_size=2, max_overflow=2, isolation_level="REPEATABLE READ",
        connect_args={"connect_timeout": 5},
    )
