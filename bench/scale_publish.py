"""Publishes tenants one after the other, for `bench/scale.py`, which measures latency meanwhile in its own process.

usage: scale_publish.py HOME FILE PAUSE_S

Says `ready` when everything is read, begins with the first line on standard input.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from scale_tenants import open_store

from guard.service.files.tenant_file import load_tenant_file


def main() -> None:
    """Read the file, wait, publish."""
    home, file, pause_s = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    whole, store = load_tenant_file(file), open_store(home)
    print("ready", flush=True)
    if not sys.stdin.readline():
        # whoever started this has gone
        return
    for spec in whole.tenants:
        store.publish(whole.model_copy(update={"tenants": (spec,)}), actor="bench")
        time.sleep(pause_s)
    store.close()


if __name__ == "__main__":
    main()
