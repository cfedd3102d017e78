"""A running server tells which store it reads; what a dead one or another one left behind is not believed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from guard.service.store.running import FILE, announce, announced, same_store, withdraw

ANNOUNCE = "import sys; from pathlib import Path; from guard.service.store.running import announce; "


def test_a_running_server_is_found_until_it_stops(tmp_path: Path) -> None:
    assert announced(tmp_path) is None
    announce(tmp_path, "/data/guard.db", "http://127.0.0.1:8000")
    server = announced(tmp_path)
    assert server is not None
    assert (server.pid, server.store, server.address) == (os.getpid(), "/data/guard.db", "http://127.0.0.1:8000")
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    withdraw(tmp_path)
    assert announced(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_server_of_another_process_is_found_while_it_lives(tmp_path: Path) -> None:
    program = f"{ANNOUNCE}announce(Path(sys.argv[1]), '/data/guard.db', 'http://x'); print(1, flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "1\n"
    server = announced(tmp_path)
    assert server is not None and server.pid == other.pid
    withdraw(tmp_path)  # not ours to remove
    assert announced(tmp_path) == server
    other.kill()
    other.communicate()
    assert announced(tmp_path) is None
    assert (tmp_path / FILE).exists()


def test_a_process_with_the_number_of_a_dead_server_is_not_taken_for_it(tmp_path: Path) -> None:
    announce(tmp_path, "/data/guard.db", "http://x")
    left = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    (tmp_path / FILE).write_text(json.dumps(left | {"born": "1"}), encoding="utf-8")
    assert announced(tmp_path) is None


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"pid": "x"}', '{"pid": -1, "store": "", "address": "", '
                                  '"started_s": 0, "born": ""}', '{"pid": 1e300, "store": 1}', "\x00"])
def test_a_damaged_file_is_no_server(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    assert announced(tmp_path) is None
    withdraw(tmp_path)


def test_a_server_runs_without_a_file_where_none_can_be_written(tmp_path: Path) -> None:
    assert not announce(tmp_path / "none", "/data/guard.db", "http://x")
    assert announced(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("/data/guard.db", "/data/./guard.db", True),
        ("/data/guard.db", "/data/other.db", False),
        ("postgresql+psycopg://a:***@host/guard", "postgresql://b:***@host:5432/guard", True),
        ("postgresql+psycopg://a:***@host/guard", "postgresql+psycopg://a:***@host/other", False),
        ("postgresql+psycopg://a:***@host:5433/guard", "postgresql+psycopg://a:***@host/guard", False),
        ("postgresql+psycopg://a:***@host/guard", "/data/guard.db", False),
    ],
)
def test_stores_are_compared_by_where_they_are(left: str, right: str, same: bool) -> None:
    assert same_store(left, right) == same
