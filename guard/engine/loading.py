"""Makes one intervention resident from outside the engine, for the self-test: the service has its own residency."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from guard.errors import EngineMismatchError, GuardError

_TIMEOUT_S = 60.0


async def make_resident(engine_client: Any, kind: str, path: Path, digest: str) -> None:
    """Stage an intervention on every rank, wait until it is read, and commit it. Raises EngineMismatchError."""
    await engine_client.collective_rpc("guard_stage", args=(kind, str(path), digest))
    deadline_s = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            states = await engine_client.collective_rpc("guard_staged", args=(kind, digest))
        except GuardError as error:
            raise EngineMismatchError(f"engine self-test failed: {error}") from error
        if all(state != "loading" for state in states):
            break
        if time.monotonic() > deadline_s:
            raise EngineMismatchError("engine self-test failed: an intervention was not read in time")
        await asyncio.sleep(0.01)
    await engine_client.collective_rpc("guard_commit", args=(kind, digest))
