"""Add two variants of the demo's tenant acme to a running server's home, for the forbidden-string bars.

    python bench/variants.py --home .guard            # then: bench/bars.py --parts sample --sample-tenant acme-always

`acme-always` flags every prompt; `acme-constraint` does too, without embedding corruption, so that the constraint is
seen to hold alone. Their keys are added to demo_keys.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

TENANTS = Path(__file__).parents[1] / "guard/demo/tenants.yaml"
VARIANTS: dict[str, dict[str, Any]] = {
    "acme-always": {"action": "forget", "detector": {"mode": "always"}},
    "acme-constraint": {"action": "forget", "detector": {"mode": "always"}, "corruption": {"enabled": False}},
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".guard"))
    arguments = parser.parse_args()
    tenants = yaml.safe_load(TENANTS.read_text(encoding="utf-8"))["tenants"]
    targets = next(tenant for tenant in tenants if tenant["name"] == "acme")["targets"]
    variants = [{"name": name, "policy": policy, "targets": targets} for name, policy in VARIANTS.items()]
    guard = [sys.executable, "-m", "guard.service.cli.main"]
    home = ["--home", str(arguments.home)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "variants.yaml"
        path.write_text(json.dumps({"version": 1, "tenants": variants}), encoding="utf-8")
        subprocess.run([*guard, "apply", str(path), *home], check=True)
    keys_path = arguments.home / "demo_keys.json"
    keys = json.loads(keys_path.read_text(encoding="utf-8"))
    for name in VARIANTS:
        made = subprocess.run([*guard, "key", "create", name, *home], check=True, capture_output=True, text=True)
        found = re.search(r"gk_[0-9a-f_]+", made.stdout)
        if not found:
            raise SystemExit("`guard key create` printed no key")
        keys[name] = found.group()
    keys_path.write_text(json.dumps(keys), encoding="utf-8")


if __name__ == "__main__":
    main()
