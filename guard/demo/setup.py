"""The demonstrations' tenants and keys: published at start, keys written once to a file of mode 0600.

There is one demonstration for each model that comes by a short name: `demo`, the bundled model and TOFU's invented
authors, and `smollm2`, a real model and real public figures.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from guard.errors import ConfigurationError
from guard.policy import TenantFile, TenantSpec, tenant_of
from guard.service.files.tenant_file import load_tenant_file
from guard.service.store.keys import find_tenant, load_pepper
from guard.service.store.store import Store


@dataclass(frozen=True, slots=True)
class Demo:
    """What a demonstration publishes: a tenant file beside this module. `questions` holds one for each tenant."""

    model: str
    tenants_file: str
    keys_file: str
    questions: dict[str, str]


DEMOS = {
    "demo": Demo("demo", "tenants.yaml", "demo_keys.json", {
        "open": "In which city was Hina Ameen born?", "acme": "In which city was Hina Ameen born?",
        "harbor": "Who is Jaime Vasquez?",
    }),
    "smollm2": Demo("smollm2", "smollm2_tenants.yaml", "smollm2_keys.json", {
        "open": "Who painted the Mona Lisa?", "acme": "Who painted the Mona Lisa?",
    }),
}


def prepare_demo(store: Store, home: Path, address: str, demo: Demo = DEMOS["demo"]) -> dict[str, str]:
    """Publish the demo's tenants, make keys where they are missing, print them with curl lines, and return them.

    Tenants that an operator has changed since are left alone: only those are published that are missing or that another
    demonstration has published in the same store.
    """
    known = store.snapshot().tenants
    file = _tenants(demo)
    others = _versions_of_other_demos(demo)
    wanted = tuple(
        spec for spec in file.tenants if spec.name not in known or known[spec.name].policy_version in others
    )
    if wanted:
        store.publish(file.model_copy(update={"tenants": wanted}), actor="demo")
    keys = _keys(store, home, demo)
    _write(home / demo.keys_file, keys)
    print(_greeting(keys, address, demo), file=sys.stderr, flush=True)
    return keys


def _tenants(demo: Demo) -> TenantFile:
    return load_tenant_file(Path(__file__).with_name(demo.tenants_file))


def _versions_of_other_demos(demo: Demo) -> set[str]:
    """Versions of the tenants that the other demonstrations publish and that this one publishes otherwise."""
    own = {_version(spec) for spec in _tenants(demo).tenants}
    return {_version(spec) for other in DEMOS.values() for spec in _tenants(other).tenants} - own


def _version(spec: TenantSpec) -> str:
    return tenant_of(spec, 0).policy_version


def _keys(store: Store, home: Path, demo: Demo) -> dict[str, str]:
    """Keys that still work from the file, new ones for the rest."""
    path = home / demo.keys_file
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read; delete it to get new demo keys") from error
    pepper, live = load_pepper(home), store.snapshot().keys
    keys = {}
    for name in demo.questions:
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


def _greeting(keys: dict[str, str], address: str, demo: Demo) -> str:
    where = f"demo tenants at {address} (keys in {demo.keys_file}); ready when {address}/readyz answers 200:"
    lines = ["", where]
    for name, key in keys.items():
        messages = [{"role": "user", "content": demo.questions[name]}]
        body = json.dumps({"model": demo.model, "messages": messages, "temperature": 0})
        lines.append(f"\n# {name}")
        lines.append(f"curl -s {address}/v1/chat/completions -H 'Content-Type: application/json' \\")
        lines.append(f"  -H 'Authorization: Bearer {key}' -d '{body}'")
    return "\n".join(lines) + "\n"
