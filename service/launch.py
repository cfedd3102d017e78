"""Start and stop of the whole server: settings, store, engine, gate, HTTP.

`serve` returns when the server has drained after SIGTERM or SIGINT. What an operator can get wrong (a port in use, a
model that is not there, a missing encoder) raises ConfigurationError with one line, before
anything slow where possible.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from guard import ticket
from guard.classifiers.answers import compares_answers
from guard.errors import ConfigurationError, StoreError
from guard.policy import Snapshot
from guard.service.settings import NO_ENCODER, Settings
from guard.service.snapshot import SnapshotWatcher
from guard.service.store.engine_record import EngineRecord
from guard.service.store.keys import load_pepper
from guard.service.store.store import Store

DEMO = "demo"
log = structlog.get_logger("guard.launch")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What `MODEL` means: a folder or Hugging Face id, and the name that clients use (None: vLLM's default)."""

    path: str
    served_name: str | None


def serve(model: str, extra: Sequence[str], settings: Settings) -> int:
    """Serve `model` with vLLM's flags `extra`; 0 after a drained stop. Raises ConfigurationError."""
    configure_logging(settings.log_level)
    served = resolve_model(model)
    # imported late: a wrong model name should not cost the import of vLLM
    from guard.engine import serve as engine_serve

    engine_serve.check_model(served.path)
    if settings.encoder != NO_ENCODER:
        from guard.classifiers.encoder import find_encoder

        find_encoder(settings.encoder)
    engine_serve.prepare_environment()
    from guard.service.loading import load_edit_settings

    args = engine_serve.build_arguments(
        served.path, extra, served_name=served.served_name, drain_timeout_s=settings.drain_timeout_s,
        edits=load_edit_settings(settings, served.path),
    )
    address, sock = engine_serve.bind(args)
    ticket.create_key()
    store, pepper = open_store(settings)
    if model == DEMO:
        from guard.demo.setup import prepare_demo

        # vLLM's CPU build otherwise claims nearly all memory for a model of 14 MB
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        prepare_demo(store, settings.home, address)
    watcher = SnapshotWatcher(store, settings.reload_interval_s)
    watcher.start()
    try:
        check_encoder(settings, watcher.current)
        _run(args, sock, address, settings, watcher, store, pepper)
    finally:
        watcher.stop()
    return 0


def resolve_model(model: str) -> ServedModel:
    """The bundled model for `demo`, anything else as it is. Raises ConfigurationError without the bundled one."""
    if model != DEMO:
        return ServedModel(model, None)
    import guard.demo

    folder = Path(guard.demo.__file__).resolve().parent / "model"
    if not (folder / "config.json").is_file():
        raise ConfigurationError(
            f"the bundled model is missing ({folder}); train it with `python -m guard.demo.train full --out {folder}`"
        )
    return ServedModel(str(folder), DEMO)


def check_encoder(settings: Settings, snapshot: Snapshot) -> None:
    """Raises ConfigurationError when a stored tenant compares answers by meaning and no encoder is configured."""
    wanting = sorted(name for name, tenant in snapshot.tenants.items() if compares_answers(tenant))
    if settings.encoder == NO_ENCODER and wanting:
        raise ConfigurationError(
            f"policy.output.semantic of {', '.join(wanting[:3])} needs a sentence encoder, and GUARD_ENCODER is `none`"
        )


def open_store(settings: Settings) -> tuple[Store, bytes]:
    """The migrated tenant store and its key pepper."""
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    pepper = load_pepper(settings.home)
    store = Store(settings.store_url, pepper)
    store.migrate()
    return store, pepper


def configure_logging(level: str) -> None:
    """JSON lines on standard error; log calls carry ids and counts only, never prompts, keys or terms."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )


def _run(
    args: Any, sock: Any, address: str, settings: Settings, watcher: SnapshotWatcher, store: Store, pepper: bytes
) -> None:
    import uvloop

    from guard.engine import serve as engine_serve
    from guard.service.door.auth import Limits
    from guard.service.door.rules import RuleContext, special_texts
    from guard.service.factory import create_server
    from guard.service.loading import load_detector, load_fitted

    async def start(engine: Any) -> tuple[Any, Callable[[Any], Any]]:
        detector, fitted = load_detector(settings), load_fitted(settings, args.model)
        server = await create_server(engine, settings, watcher, pepper, detector, fitted)
        await asyncio.to_thread(_record_engine, store, server.parts.record)
        names = tuple(args.served_model_name or [args.model])
        rules = RuleContext(names, special_texts(engine.renderer.get_tokenizer()))
        limits = Limits(settings.max_body_bytes, settings.body_timeout_s)
        log.info("serving", address=address, tenants=len(watcher.current.tenants))
        return server.client, lambda app: server.install(app, rules, limits)

    try:
        uvloop.run(engine_serve.run(args, sock, address, start))
    except OSError as error:
        if "is not a local folder" in str(error) or "config.json" in str(error) or "not a valid model" in str(error):
            raise ConfigurationError(f"model not found: {args.model}") from error
        raise
    except (KeyboardInterrupt, asyncio.CancelledError):
        log.info("stopped_during_start")


def _record_engine(store: Store, record: EngineRecord) -> None:
    """Let `guard apply` know what this server can edit. A store that is read-only now must not stop the server."""
    try:
        store.record_engine(record)
    except StoreError as error:
        log.warning("engine_not_recorded", error=str(error))
