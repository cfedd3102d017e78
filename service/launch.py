"""Start and stop of the whole server: settings, store, engine, gate, HTTP.

`serve` returns when the server has drained after SIGTERM or SIGINT; a signal during the start ends it at once, with
code 0, too. What an operator can get wrong (a port in use, a model that is not there, a missing encoder, too little
memory) raises ConfigurationError with one line, before anything slow where possible; the traces of a start that fails
in the engine lie in `GUARD_HOME/start_failure.log`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from guard import __version__, ticket
from guard.classifiers.answers import compares_answers
from guard.engine.start_failure import StartFailure, explain, take_failures, write_traces
from guard.errors import ConfigurationError, GuardError, PackError, StoreError
from guard.policy import Snapshot
from guard.service.door.auth import ROUTES
from guard.service.settings import NO_ENCODER, Settings
from guard.service.snapshot import SnapshotWatcher
from guard.service.store import running
from guard.service.store.engine_record import EngineRecord
from guard.service.store.keys import load_pepper
from guard.service.store.store import Store

if TYPE_CHECKING:
    from guard.engine.compat import EditSettings
    from guard.interventions.eco import FittedCorruption

DEMO = "demo"
SMOLLM2 = "smollm2"
TRACES = "start_failure.log"
log = structlog.get_logger("guard.launch")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What `MODEL` means: a folder or Hugging Face id, and the name that clients use (None: vLLM's default)."""

    path: str
    served_name: str | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is settled before the engine starts: vLLM's arguments, the bound socket and its address, the open store."""

    settings: Settings
    args: Any
    sock: Any
    address: str
    fitted: FittedCorruption | None
    edits: EditSettings
    store: Store
    pepper: bytes

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which clients ask for the model."""
        return tuple(self.args.served_model_name or [self.args.model])


def serve(model: str, extra: Sequence[str], settings: Settings) -> int:
    """Serve `model` with vLLM's flags `extra`; 0 after a drained stop. Raises ConfigurationError."""
    configure_logging(settings.log_level)
    log.info("starting", model=model, version=__version__)
    # imported late: a wrong model name should not cost the import of vLLM
    from guard.engine import lifetime

    def stopped(signal_name: str) -> None:
        running.withdraw(settings.home)
        log.info("stopped_during_start", signal=signal_name)

    lifetime.stop_on_signals(stopped)
    prepared = prepare(resolve_model(model, settings.home), extra, settings)
    if model in (DEMO, SMOLLM2):
        from guard.demo.setup import DEMOS, prepare_demo

        prepare_demo(prepared.store, settings.home, prepared.address, DEMOS[model])
    watcher = SnapshotWatcher(prepared.store, settings.reload_interval_s)
    watcher.start()
    running.announce(settings.home, prepared.store.location, prepared.address)
    try:
        check_encoder(settings, watcher.current)
        tenants = watcher.current.tenants.values()
        log.info(
            "prepared", model=prepared.names[0], address=prepared.address, tenants=len(tenants),
            with_lists=sum(tenant.listed for tenant in tenants), encoder=settings.encoder, **strength(prepared.fitted),
            sites=prepared.edits.sites, slots=prepared.edits.max_slots,
        )
        _run(prepared, watcher)
    finally:
        running.withdraw(settings.home)
        watcher.stop()
    return 0


def prepare(served: ServedModel, extra: Sequence[str], settings: Settings) -> Prepared:
    """Check everything that can be checked without an engine, in the order of what it costs.

    Raises ConfigurationError.
    """
    from guard.engine import serve as engine_serve

    engine_serve.check_model(served.path)
    if settings.encoder != NO_ENCODER:
        from guard.classifiers.encoder import find_encoder

        find_encoder(settings.encoder)
    engine_serve.prepare_environment()
    from guard.service.loading import load_edit_settings, load_fitted

    try:
        fitted = load_fitted(settings, served.path)
    except PackError as error:
        raise ConfigurationError(f"the fitted strength cannot be used: {error}") from error
    edits = load_edit_settings(settings, served.path)
    args = engine_serve.build_arguments(
        served.path, extra, served_name=served.served_name, drain_timeout_s=settings.drain_timeout_s, edits=edits
    )
    address, sock = engine_serve.bind(args)
    ticket.create_key()
    store, pepper = open_store(settings)
    return Prepared(settings, args, sock, address, fitted, edits, store, pepper)


def strength(fitted: FittedCorruption | None) -> dict[str, object]:
    """What the log says of the strength with which prompts are corrupted."""
    if fitted is None:
        return {"rho": None, "hint": "no strength is fitted for this model: run `guard fit eco`; a default is used"}
    return {"rho": fitted.rho, "scope": fitted.scope, "pack": fitted.pack[:16]}


def resolve_model(model: str, home: Path = Path(".guard")) -> ServedModel:
    """The bundled model for `demo`, a small real one kept below `home` for `smollm2`, anything else as it is.

    Raises ConfigurationError where the bundled model is missing or the real one cannot be fetched.
    """
    if model == SMOLLM2:
        from guard.demo.real_model import real_model

        return ServedModel(str(real_model(home.resolve())), SMOLLM2)
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


def _run(prepared: Prepared, watcher: SnapshotWatcher) -> None:
    import uvloop

    from guard.engine import serve as engine_serve
    from guard.service.door.auth import Limits
    from guard.service.door.rules import RuleContext, special_texts
    from guard.service.factory import create_server
    from guard.service.loading import load_detector

    settings = prepared.settings
    failures = settings.home.resolve() / f".start_failures.{os.getpid()}"
    began: list[str] = []

    async def start(engine: Any) -> tuple[Any, Callable[[Any], Any]]:
        detector = load_detector(settings)
        server = await create_server(engine, settings, watcher, prepared.pepper, detector, prepared.fitted)
        await asyncio.to_thread(_record_engine, prepared.store, server.parts.record)
        rules = RuleContext(prepared.names, special_texts(engine.renderer.get_tokenizer()))
        limits = Limits(settings.max_body_bytes, settings.body_timeout_s)
        return server.client, lambda app: server.install(app, rules, limits)

    def serving() -> None:
        began.append(prepared.address)
        log.info("serving", address=prepared.address, tenants=len(watcher.current.tenants), routes=sorted(ROUTES))

    try:
        uvloop.run(engine_serve.run(prepared.args, prepared.sock, start, serving, failures))
    except GuardError:
        raise
    except Exception as error:
        if began:
            raise
        raise failed_start(error, take_failures(failures), settings.home / TRACES) from error


def failed_start(error: Exception, failures: Sequence[StartFailure], traces: Path) -> ConfigurationError:
    """What ends the command when the engine did not start; the traces of its processes are written to `traces`."""
    write_traces(traces, error, failures)
    return ConfigurationError(f"the server did not start: {explain(error, failures)} (the traces are in {traces})")


def _record_engine(store: Store, record: EngineRecord) -> None:
    """Let `guard apply` know what this server can edit. A store that is read-only now must not stop the server."""
    try:
        store.record_engine(record)
    except StoreError as error:
        log.warning("engine_not_recorded", error=str(error))
