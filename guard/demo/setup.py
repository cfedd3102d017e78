"""The demonstration's tenants and keys: published at start, keys written once to `demo_keys.json` (mode 0600)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from guard.errors import ConfigurationError
from guard.service.files.tenant_file import load_tenant_file
from guard.service.store.keys import find_tenant, load_pepper
from guard.service.store.store import Store

KEYS_FILE = "demo_keys.json"
TENANTS = ("open", "acme", "harbor")
QUESTIONS = {"acme": "In which city was Hina Ameen born?", "harbor": "Who is Jaime Vasquez?"}


def prepare_demo(store: Store, home: Path, address: str) -> dict[str, str]:
    """Publish the demo tenants, make keys where they are missing, print them with curl lines, and return them.

    Tenants that an operator has changed since are left alone: only tenants that are missing are published.
    """
    file = load_tenant_file(Path(__file__).with_name("tenants.yaml"))
    known = store.snapshot().tenants
    missing = tuple(spec for spec in file.tenants if spec.name not in known)
    if missing:
        store.publish(file.model_copy(update={"tenants": missing}), actor="demo")
    keys = _keys(store, home)
    _write(home / KEYS_FILE, keys)
    print(_greeting(keys, address), file=sys.stderr, flush=True)
    return keys


def _keys(store: Store, home: Path) -> dict[str, str]:
    """Keys that still work from the file, new ones for the rest."""
    try:
        found = json.loads((home / KEYS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{home / KEYS_FILE} cannot be read; delete it to get new demo keys") from error
    pepper, live = load_pepper(home), store.snapshot().keys
    keys = {}
    for name in TENANTS:
        key = found.get(name) if isinstance(found, dict) else None
        works = isinstance(key, str) and find_tenant(key, live, pepper) == name
        keys[name] = key if isinstance(key, str) and works else store.create_key(name, label="demo", actor="demo").text
    return keys


def _write(path: Path, keys: dict[str, str]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(keys, file, indent=1)
        file.write("\n")
    draft.replace(path)


def _greeting(keys: dict[str, str], address: str) -> str:
    lines = ["", f"demo tenants at {address} (keys in {KEYS_FILE}); ready when {address}/readyz answers 200:"]
    for name, key in keys.items():
        question = QUESTIONS.get(name, QUESTIONS["acme"])
        body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": question}], "temperature": 0})
        lines.append(f"\n# {name}")
        lines.append(f"curl -s {address}/v1/chat/completions -H 'Content-Type: application/json' \\")
        lines.append(f"  -H 'Authorization: Bearer {key}' -d '{body}'")
    return "\n".join(lines) + "\n"
