"""vLLM's own server with the guard's anchors: arguments, environment, engine, application.

Flags that the guard needs are forced; flags that would open a way round it are refused with their name.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard.errors import ConfigurationError

if TYPE_CHECKING:
    from guard.engine.compat import EditSettings

QUIET_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
DEFAULT_HOST = "127.0.0.1"

Start = Callable[[Any], Awaitable[tuple[Any, Callable[[Any], Any]]]]


def prepare_environment() -> None:
    """Set the environment that vLLM's processes inherit. Raises ConfigurationError for a variable that opens a door."""
    from guard.engine import compat

    compat.check_version()
    compat.check_environment(os.environ)
    os.environ.update(compat.forced_environment() | QUIET_ENVIRONMENT)


def build_arguments(
    model: str, extra: Sequence[str], *, served_name: str | None, drain_timeout_s: int,
    edits: EditSettings | None = None,
) -> Namespace:
    """vLLM's parsed arguments for `MODEL [flags]`, with the guard's own; `edits` None means the defaults.

    Raises ConfigurationError for a flag that cannot be guarded.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from guard.engine import cache_size, compat

    parser: Any = make_arg_parser(
        FlexibleArgumentParser(prog="guard serve", description="Serve a model behind the guard.")
    )
    # None tells "not given" from the same value given
    usual = parser.get_default("gpu_memory_utilization")
    parser.set_defaults(gpu_memory_utilization=None)
    args: Namespace = parser.parse_args([model, *extra])
    args.choose_cache = not cache_size.sized_by_user(args)
    args.gpu_memory_utilization = usual if args.gpu_memory_utilization is None else args.gpu_memory_utilization
    compat.check_arguments(args)
    args.shutdown_timeout = args.shutdown_timeout or drain_timeout_s
    for name, value in compat.forced_arguments(args, edits).items():
        setattr(args, name, value)
    args.model = model
    args.host = args.host or DEFAULT_HOST
    if served_name is not None and not args.served_model_name:
        args.served_model_name = [served_name]
    validate_parsed_serve_args(args)
    return args


def check_model(model: str) -> None:
    """Raise ConfigurationError when `model` is a local path without a model."""
    path = Path(model)
    local = path.is_absolute() or model.startswith((".", "~")) or path.exists()
    if local and not (path.expanduser() / "config.json").is_file():
        raise ConfigurationError(f"model not found: {model} has no config.json")


def bind(args: Namespace) -> tuple[str, socket.socket]:
    """Bind the listening socket before anything slow. Raises ConfigurationError when the port is taken."""
    from vllm.entrypoints.launchers.launcher import setup_server

    try:
        address, sock = setup_server(args, reuse_port=False)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound: {error.strerror}"
        raise ConfigurationError(f"port {args.port} on {args.host} {reason}; choose another with --port") from error
    return address, sock


async def run(
    args: Namespace, sock: socket.socket, start: Start, serving: Callable[[], None], failures: Path | None = None,
) -> None:
    """Start the engine, let `start` make (client, install) from it, and serve until a signal.

    `start(engine)` returns the wrapped client and a function that puts the guard in front of the application;
    `serving` is called once the server answers. `failures` is where a failing start leaves its errors.
    """
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client_from_engine_args
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.launcher import serve_http

    from guard.engine.cache_size import SizedEngineArgs
    from guard.engine.lifetime import tie_processes
    from guard.engine.log_filter import filter_server_log

    tie_processes(failures)
    engine_args = SizedEngineArgs.from_cli_args(args)
    engine_args.choose_cache = args.choose_cache
    async with build_async_engine_client_from_engine_args(engine_args) as engine:
        filter_server_log()
        client, install = await start(engine)
        tasks = await client.get_supported_tasks()
        if "generate" not in tasks:
            raise ConfigurationError("the guard serves models that generate text; this model does not")
        app = build_app(args, tasks, client.model_config)
        await init_app_state(client, app.state, args, tasks)
        announcement = asyncio.create_task(_announce(app.state, serving))
        ended = await serve_http(
            install(app), sock=sock, enable_ssl_refresh=args.enable_ssl_refresh, host=args.host, port=args.port,
            log_level=args.uvicorn_log_level, access_log=False, ssl_keyfile=args.ssl_keyfile,
            ssl_certfile=args.ssl_certfile, ssl_ca_certs=args.ssl_ca_certs, ssl_cert_reqs=args.ssl_cert_reqs,
            ssl_ciphers=args.ssl_ciphers, h11_max_incomplete_event_size=64 * 1024, h11_max_header_count=64,
            http="h11",
        )
        announcement.cancel()
    try:
        await ended
    finally:
        sock.close()


async def _announce(state: Any, serving: Callable[[], None]) -> None:
    # vLLM puts its HTTP server there, and has no hook for the moment from which it answers
    while not getattr(getattr(state, "server", None), "started", False):
        await asyncio.sleep(0.05)
    serving()
