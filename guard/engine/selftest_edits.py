"""The canary of activation edits: a pack that shifts every steerable site must be counted there, token by token."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from guard.engine.loading import make_resident
from guard.errors import EngineMismatchError
from guard.interventions.steer import save_steer
from guard.plan import EditLane
from guard.site import Site

_KIND = "edit"
# no effect that a client could see, but an edit for the kernel
_SHIFT = 1e-3

Moved = Callable[[tuple[EditLane, ...]], Awaitable[list[dict[str, int]]]]


async def check_edits(engine_client: Any, pings: Sequence[dict[str, Any]], moved: Moved) -> int:
    """Edit one prompt at all sites of all ranks and compare the counters; returns the number of sites.

    `moved(edits)` runs the canary prompt under these edits and says by how much every rank's counters grew.
    Raises EngineMismatchError.
    """
    sites = sorted({Site.parse(text) for ping in pings for text in ping["sites"]})
    if not sites:
        return 0
    vectors = {site: torch.full((int(pings[0]["width"]),), _SHIFT) for site in sites}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "canary.safetensors"
        pack = save_steer(
            path, vectors, model_fingerprint=pings[0]["fingerprint"], fit_data_digest="0" * 64, fit_report={},
            licence="Apache-2.0",
        )
        digest = pack.content_hash
        await make_resident(engine_client, _KIND, path, digest)
    try:
        counts = await moved((EditLane(pack=digest),))
    finally:
        await engine_client.collective_rpc("guard_release", args=(_KIND, digest))
    for ping, count in zip(pings, counts, strict=True):
        expected, found = count["expected_edited_tokens"], count["edited_tokens"]
        if found != expected or bool(found) != bool(ping["sites"]):
            raise EngineMismatchError(
                f"engine self-test failed: rank {ping['rank']} edited {found} tokens instead of {expected}; the model "
                "may have been compiled without the guard's op"
            )
    return len(sites)
