"""`guard audit` shows who did what, newest first, and nothing that is secret."""

from __future__ import annotations

import json
from pathlib import Path

from tests.service.cli.command_line import run

FILE = "version: 1\ntenants:\n  - name: acme\n    targets:\n      - name: Hina Ameen\n  - name: open\n"


def test_the_trail_of_all_tenants_or_of_one_is_shown(home: Path, tmp_path: Path) -> None:
    (tmp_path / "tenants.yaml").write_text(FILE, encoding="utf-8")
    run("apply", tmp_path / "tenants.yaml")
    key = run("key", "create", "acme").stdout.strip()
    run("tenant", "delete", "open", "--yes")
    rows = json.loads(run("audit", "--json").stdout)
    assert [(row["action"], row["tenant"]) for row in rows] == [
        ("tenant.delete", "open"), ("key.create", "acme"), ("tenant.create", "open"), ("tenant.create", "acme"),
    ]
    assert all(row["actor"].startswith("cli:") and row["time"].endswith("+00:00") for row in rows)
    assert rows[1]["detail"] == {"key": key.split("_")[1]}
    assert [row["action"] for row in json.loads(run("audit", "--tenant", "acme", "--json").stdout)] == [
        "key.create", "tenant.create",
    ]
    assert len(json.loads(run("audit", "--limit", "1", "--json").stdout)) == 1
    lines = run("audit").stdout.splitlines()
    assert [line.split()[2] for line in lines] == [row["action"] for row in rows]
    assert lines[-1].split()[3] == "acme" and lines[-1].endswith("targets=1")
    assert "Hina" not in str(lines) and key not in str(lines)


def test_a_trail_needs_a_store(home: Path) -> None:
    result = run("audit")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "guard apply" in result.stderr
