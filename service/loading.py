"""Makes the parts that the server is wired from: detector, fitted strength, self-test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from guard import ticket
from guard.classifiers.detector import Detector
from guard.classifiers.encoder import Encoder
from guard.engine.selftest import selftest
from guard.errors import PackError
from guard.interventions.eco import FittedCorruption, load_eco
from guard.packs.fingerprint import model_fingerprint
from guard.service.settings import NO_ENCODER, Settings

PACK_FOLDER = "eco"

log = structlog.get_logger("guard.loading")


def load_detector(settings: Settings) -> Detector:
    """The detector with the configured encoder. Raises ConfigurationError when the encoder cannot be had."""
    if settings.encoder == NO_ENCODER:
        return Detector(None)
    encoder = Encoder(settings.encoder, cache_dir=settings.home.resolve() / "encoder")
    encoder.load()
    return Detector(encoder)


def load_fitted(settings: Settings, model: str) -> FittedCorruption | None:
    """The corruption strength fitted for `model`: `GUARD_FITTED`, `eco` next to the model, or in `GUARD_HOME/fitted`.

    None when there is none. Raises PackError when a pack was made for another model.
    """
    folder = Path(model)
    if not folder.is_dir():
        if settings.fitted is not None:
            raise PackError("a fitted strength needs a model in a local folder to compare with")
        return None
    usual = [folder / PACK_FOLDER, settings.home / "fitted" / PACK_FOLDER]
    candidates = [settings.fitted] if settings.fitted else usual
    for path in candidates:
        if path.exists() or settings.fitted is not None:
            fitted = load_eco(path, model_fingerprint=model_fingerprint(folder))
            log.info("fitted_strength", rho=fitted.rho, scope=fitted.scope, pack=fitted.pack[:16])
            return fitted
    log.warning("no_fitted_strength", hint="run `guard fit eco` for this model; policies without rho use a default")
    return None


async def run_self_test(engine: Any, tokenizer: Any) -> None:
    """The canary requests through the real engine. Raises EngineMismatchError."""
    report = await selftest(engine, tokenizer, ticket.read_key())
    log.info("self_test_passed", **report)
