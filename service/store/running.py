"""Which server runs in a home folder, and on which store: told in `GUARD_HOME/server.json` from its start to its end.

A command that writes into one store while the server reads another one changes nothing that anybody sees; with this
file it can say so. A file that a killed server left behind is ignored: its process is gone, or the number belongs to a
process that started at another time.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

FILE = "server.json"
POSTGRESQL_PORT = 5432


@dataclass(frozen=True, slots=True)
class AnnouncedServer:
    """A server that runs. `store` is `Store.location`, without password; `started_s` Unix time.

    `born` is when the process began, in the kernel's clock ticks since boot; empty where that cannot be read.
    """

    pid: int
    store: str
    address: str
    started_s: float
    born: str


def announce(home: Path, location: str, address: str) -> bool:
    """Write the file (mode 0600) for this process. False where the folder cannot be written: a server runs without."""
    pid = os.getpid()
    server = AnnouncedServer(pid, location, address, time.time(), _born(pid))
    draft = home / f".{FILE}.{pid}"
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(server), file, indent=1)
            file.write("\n")
        draft.replace(home / FILE)
    except OSError:
        return False
    return True


def withdraw(home: Path) -> None:
    """Remove the file, unless another server has written its own since."""
    with contextlib.suppress(OSError):
        known = _read(home)
        if known is not None and known.pid == os.getpid():
            (home / FILE).unlink()


def announced(home: Path) -> AnnouncedServer | None:
    """The server that runs in `home`, or None. A file that is damaged or out of date is no server."""
    known = _read(home)
    return known if known is not None and _alive(known) else None


def same_store(left: str, right: str) -> bool:
    """Whether two `Store.location`s are one store as far as they tell: path, or host, port and name of a database."""
    return _identity(left) == _identity(right)


def _read(home: Path) -> AnnouncedServer | None:
    try:
        found = json.loads((home / FILE).read_text(encoding="utf-8"))
        return AnnouncedServer(
            int(found["pid"]), str(found["store"]), str(found["address"]), float(found["started_s"]), str(found["born"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(known: AnnouncedServer) -> bool:
    if known.pid <= 0:
        return False
    try:
        os.kill(known.pid, 0)
    except PermissionError:
        # it belongs to another user
        pass
    except (OSError, OverflowError):
        return False
    return _born(known.pid) == known.born


def _born(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # the second field, the program's name in brackets, may hold blanks; the start time is the 22nd
        return text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _identity(location: str) -> tuple[str, int, str]:
    if "://" not in location:
        return "", 0, os.path.realpath(location)
    try:
        url = make_url(location)
    except ArgumentError:
        return "", 0, location
    return url.host or "localhost", url.port or POSTGRESQL_PORT, url.database or ""
