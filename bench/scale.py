"""How the guard grows with its tenants: start, memory, first requests, one batch of many, changes during traffic.

    python bench/scale.py

Two servers, one after the other: one with 3 stored tenants, one with 10,000, each of 10 targets (a name and a forbidden
string each, no two tenants alike). They serve the bundled model, which ends an answer only at `max_tokens` here, so
that a batch can fill. Everything is asked over HTTP and read from the processes and from `/metrics`. `--sections` runs
some of it, `--tenants 200` is a small trial; what is not run keeps its earlier result in the output file. The sections:

start   seconds of `guard apply` and until the server is ready, resident memory, with 3 and with all tenants
first   time to the first token of tenants that were not asked before, of the same when warm, and of one without a list
active  one flagged request to each of 1,000 tenants; memory afterwards
batch   flagged requests of 300 tenants in one batch of the engine
change  latency of other tenants while 100 lists change: one by one, and in one `guard apply`, beside one without change
large   a tenant with 100,000 forbidden strings: until it is answered, and the latency of others meanwhile
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import scale_load as load
import scale_sections as sections
from scale_sections import Sizes
from scale_server import Server, endless_model, guard, serving
from scale_table import rows
from scale_tenants import PLAIN, make_keys, tenant_name, write_tenants

HERE = Path(__file__).parent
FEW = 3
SETTLE_S = 15.0
SECTIONS = ("start", "first", "active", "batch", "change", "large")


def say(text: str) -> None:
    """A line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


@contextmanager
def stored(folder: Path, count: int, sizes: Sizes) -> Iterator[tuple[Server, dict[str, Any]]]:
    """A server with `count` stored tenants, and what applying, starting and holding them took."""
    home = folder / f"home-{count}"
    file = write_tenants(folder / f"{count}.yaml", range(count), plain=True)
    say(f"guard apply of {count} tenants")
    apply_s = guard(home, "apply", file, "--json")
    unchanged_s = guard(home, "apply", file, "--json")
    say(f"applied in {apply_s:.1f} s, again in {unchanged_s:.1f} s; starting the server")
    flags = ["--max-model-len", "512", "--max-num-seqs", str(max(64, sections.asked_at_once(sizes.batch) + 10))]
    with serving(endless_model(folder), home, flags, folder / f"server-{count}.log") as server:
        say(f"ready after {server.start_s:.1f} s")
        time.sleep(SETTLE_S)
        yield server, {
            "tenants": count, "apply_s": round(apply_s, 2), "apply_unchanged_s": round(unchanged_s, 2),
            "start_s": round(server.start_s, 1), "memory_kb": server.memory(),
        }


def measure_start(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """The server with few tenants, started twice: the first start compiles what later ones find on disk."""
    with stored(folder / "first", FEW, sizes):
        pass
    with stored(folder, FEW, sizes) as (_, few):
        return few


async def measure(server: Server, folder: Path, sizes: Sizes, chosen: list[str], report: dict[str, Any]) -> None:
    """All sections but the start, on the server with all tenants."""
    say("making keys")
    keys = make_keys(server.home, [PLAIN, *(tenant_name(number) for number in range(sizes.tenants))])
    stage = sections.Stage(server, folder, keys, sizes, say)
    async with load.client(server.url) as http:
        await load.accepted(http, keys[tenant_name(sizes.tenants - 1)])
        measured = {
            "first": sections.first_requests, "active": sections.active, "batch": sections.batch,
            "change": sections.change, "large": sections.large,
        }
        for name, section in measured.items():
            if name in chosen:
                say(f"section {name}")
                report[name] = {**await section(stage, http), "sizes": vars(sizes)}
                say(json.dumps(report[name]))


def run(folder: Path, sizes: Sizes, chosen: list[str], report: dict[str, Any]) -> None:
    """The chosen sections into `report`."""
    few = measure_start(folder, sizes) if "start" in chosen else None
    with stored(folder, sizes.tenants, sizes) as (server, many):
        if few is not None:
            report["start"] = {"few": few, "many": many, "sizes": vars(sizes)}
            say(json.dumps(report["start"]))
        asyncio.run(measure(server, folder, sizes, chosen, report))


def machine() -> str:
    """What it ran on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--active", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=300)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--strings", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=30, help="tenants of the section `first`")
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second of the steady traffic")
    parser.add_argument("--seconds", type=float, default=40.0, help="length of one stretch of steady traffic")
    parser.add_argument("--rounds", type=int, default=3, help="stretches of each kind in the section `change`")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scale.json")
    return parser.parse_args()


def main() -> None:
    """Measure and write; what was measured before an interruption is kept."""
    given = arguments()
    # a small trial asks no tenant twice for the same purpose either
    active = min(given.active, given.tenants - given.samples)
    sizes = Sizes(
        given.tenants, active, min(given.batch, 4 * active // 5), min(given.changes, active // 2), given.strings,
        min(given.samples, given.tenants // 4), given.rate, given.seconds, given.rounds,
    )
    # also when it is ended by another program, the servers are
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report: dict[str, Any] = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    report["machine"] = machine()
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "first").mkdir()
            run(Path(folder), sizes, given.sections, report)
    finally:
        report["rows"] = rows(report)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["rows"], indent=1))


if __name__ == "__main__":
    main()
