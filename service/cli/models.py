"""`guard check`: ask the detector without a running server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.errors import DetectorError
from guard.policy import Tenant
from guard.service.cli.options import DEFAULT_HOME, AsJson, DatabaseUrl, Home, console, stored_tenant

if TYPE_CHECKING:
    from guard.verdict import Verdict


def check(
    prompt: Annotated[str, typer.Argument(help="Text to classify.")],
    tenant: Annotated[str, typer.Option(help="Tenant whose forget-list decides.")],
    home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "", as_json: AsJson = False,
) -> None:
    """Ask the detector which targets of a tenant PROMPT touches. Needs no server; target names are shown."""
    found = stored_tenant(home, database_url, tenant)
    verdict = asyncio.run(_detect(found, prompt, home))
    if verdict.unknown:
        raise DetectorError(f"the detector gave no verdict; failure mode `{found.policy.failure_mode}` would decide")
    hits = [
        {"target": hit.target, "name": found.targets[hit.target].name, "score": round(hit.score, 4), "part": hit.part,
         "spans": [list(span) for span in hit.spans]}
        for hit in verdict.hits
    ]
    action = found.policy.action if verdict.flagged else "pass"
    if as_json:
        typer.echo(json.dumps({"tenant": tenant, "action": action, "hits": hits}, indent=2, ensure_ascii=False))
        return
    out = console()
    out.print(f"action: {action}", markup=False)
    for hit in hits:
        out.print(f"  target {hit['target']} {hit['name']}: score {hit['score']} ({hit['part']})", markup=False)


async def _detect(tenant: Tenant, prompt: str, home: Path) -> Verdict:
    # not through the server's loading module, which loads the engine as well
    from guard.classifiers.detector import Detector
    from guard.classifiers.encoder import Encoder
    from guard.service.settings import load_settings
    from guard.verdict import DecodedPrompt

    settings = load_settings(options={"home": home})
    no_encoder = settings.encoder == "none"
    detector = Detector(None if no_encoder else Encoder(settings.encoder, cache_dir=settings.home / "encoder"))
    try:
        await detector.built(tenant)
        failure = detector.failure(tenant)
        if failure:
            raise DetectorError(f"the detector for tenant {tenant.name} could not be built: {failure}")
        # without a model there are no tokens: the whole text stands for one
        return await detector.detect(tenant, DecodedPrompt((0,), prompt, ((0, len(prompt)),), (False,)))
    finally:
        detector.close()
