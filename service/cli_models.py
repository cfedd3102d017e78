"""`guard check` and `guard fit`: what an operator does without a running server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guard.errors import ConfigurationError, DetectorError
from guard.policy import Tenant
from guard.service.cli_options import DEFAULT_HOME, AsJson, DatabaseUrl, Home, console, export, open_store

if TYPE_CHECKING:
    from guard.verdict import Verdict

fits = typer.Typer(help="Fit interventions to a model.", no_args_is_help=True)


def check(
    prompt: Annotated[str, typer.Argument(help="Text to classify.")],
    tenant: Annotated[str, typer.Option(help="Tenant whose forget-list decides.")],
    home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "", as_json: AsJson = False,
) -> None:
    """Ask the detector which targets of a tenant PROMPT touches. Needs no server; target names are shown."""
    found = open_store(home, database_url).snapshot().tenants.get(tenant)
    if found is None:
        raise ConfigurationError(f"there is no tenant {tenant}; `guard tenant list` shows them")
    export(home, database_url)
    verdict = asyncio.run(_detect(found, prompt))
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


async def _detect(tenant: Tenant, prompt: str) -> Verdict:
    # not through the server's loading module, which loads the engine as well
    from guard.classifiers.detector import Detector
    from guard.classifiers.encoder import Encoder
    from guard.service.settings import load_settings
    from guard.verdict import DecodedPrompt

    settings = load_settings()
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


@fits.command("eco")
def fit_eco(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    data: Annotated[Path, typer.Argument(help="JSON Lines with `question` and `answer` (and `paraphrase`).")],
    out: Annotated[Path, typer.Argument(help="Folder for the report, the curve and the pack.")],
    target: Annotated[float | None, typer.Option(help="Score that the corrupted model should reach.")] = None,
    retain_records: Annotated[
        Path | None, typer.Option(help="Per-question records of a retain model, whose mean is the target score.")
    ] = None,
    records_split: Annotated[str | None, typer.Option(help="Only the records of this split.")] = None,
    metric: Annotated[Literal["log_probability", "rouge"], typer.Option(help="What is compared.")] = "log_probability",
    kind: Annotated[
        Literal["gauss", "zero_top", "flip_sign", "erase"], typer.Option(help="Corruption function.")
    ] = "gauss",
    scope: Annotated[Literal["spans", "prompt"], typer.Option(help="Tokens that are corrupted.")] = "prompt",
    dims: Annotated[int, typer.Option(min=0, help="Corrupted dimensions, 0 for all.")] = 0,
    rho_low: Annotated[float, typer.Option(help="Smallest strength tried.")] = 0.1,
    rho_high: Annotated[float, typer.Option(help="Largest strength tried.")] = 40.0,
    max_questions: Annotated[int, typer.Option(min=2, help="Most questions used.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise and the split.")] = 0,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    licence: Annotated[str, typer.Option(help="Licence recorded in the pack.")] = "unknown",
) -> None:
    """Find the corruption strength at which MODEL knows as little about DATA as a model that never saw it."""
    from guard.fit.eco import run_fit_eco

    fitted = run_fit_eco(
        model, data, out, target=target, retain_records=retain_records, records_split=records_split, metric=metric,
        kind=kind, dims=dims, scope=scope, rho_low=rho_low, rho_high=rho_high, max_questions=max_questions, seed=seed,
        device=device, licence=licence,
    )
    typer.echo(f"rho {fitted.rho:g}, written to {out}")
