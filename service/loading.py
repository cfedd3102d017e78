"""Makes the parts that the server is wired from: detector, fitted strength, settings of edits, self-test."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import structlog

from guard import ticket
from guard.classifiers.detector import Detector
from guard.classifiers.encoder import Encoder
from guard.engine.compat import NO_FINGERPRINT, EditSettings
from guard.engine.selftest import selftest
from guard.errors import PackError
from guard.interventions.eco import FittedCorruption, load_eco
from guard.packs.fingerprint import model_fingerprint
from guard.packs.model_shape import model_shape
from guard.service.settings import NO_ENCODER, Settings
from guard.site import parse_sites

PACK_FOLDER = "eco"
# more than any model has: a site's form can be checked without knowing the model
MAX_LAYERS = 1000

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
            return load_eco(path, model_fingerprint=model_fingerprint(folder))
    return None


def load_edit_settings(settings: Settings, model: str) -> EditSettings:
    """Where the engine can edit activations, how many packs fit, and the fingerprint that packs must carry.

    Raises ConfigurationError for sites that the model does not have; for a model that is not in a local folder only
    their form is checked here, the rest by the engine.
    """
    folder = Path(model)
    if not (folder / "config.json").is_file():
        parse_sites(settings.sites, MAX_LAYERS)
        log.warning("model_without_fingerprint", hint="edit packs need a model in a local folder")
        return EditSettings(settings.sites, settings.max_slots, settings.max_rank, max_lists=settings.max_lists)
    with contextlib.suppress(PackError):
        # an unusual config says its layers to the engine only
        parse_sites(settings.sites, model_shape(folder).num_layers)
    try:
        fingerprint = model_fingerprint(folder)
    except PackError as error:
        log.warning("model_without_fingerprint", reason=str(error))
        fingerprint = NO_FINGERPRINT
    return EditSettings(settings.sites, settings.max_slots, settings.max_rank, fingerprint, settings.max_lists)


async def run_self_test(engine: Any, tokenizer: Any) -> None:
    """The canary requests through the real engine. Raises EngineMismatchError."""
    report = await selftest(engine, tokenizer, ticket.read_key())
    log.info("self_test_passed", **report)
