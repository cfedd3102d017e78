"""Takes out of vLLM's log what is no news: the guard's own refusals, and the list of routes.

vLLM logs every exception of a request with its traceback, also those with which the guard refuses one. The guard
counts and answers these itself (`guard_refused_total`). Exactly its two classes of refusals are filtered; every other
error passes untouched.
"""

from __future__ import annotations

import logging

from guard.errors import RequestRefused, TicketError

SELF_TEST = "guard-selftest-"
ENGINE_LOGGER = "vllm.v1.engine.core"
_ROUTE_LOGGER = "vllm.entrypoints.launchers.launcher"
# vLLM lists what its application has; most of it is answered 404 by the guard
_ROUTE_LINES = ("Available routes are:", "Route: %s, Methods: %s", "Route: %s, Endpoint: %s")


class RefusalFilter(logging.Filter):
    """For the handlers and loggers of vLLM, in the server and in the engine process."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a refused request; a request without a valid ticket keeps one line, except the self-test's own."""
        if record.name == _ROUTE_LOGGER and record.msg in _ROUTE_LINES:
            return False
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RequestRefused):
            return False
        if isinstance(error, TicketError):
            if SELF_TEST in record.getMessage():
                return False
            record.msg, record.args = "the guard refused a request in the engine: %s", (str(error),)
            record.exc_info, record.exc_text = None, None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


def filter_server_log() -> None:
    """Filter vLLM's log in this process. Call it when the engine runs: vLLM makes its handlers anew before."""
    for handler in logging.getLogger("vllm").handlers:
        if not any(isinstance(known, RefusalFilter) for known in handler.filters):
            handler.addFilter(RefusalFilter())


def filter_engine_log() -> None:
    """Filter the logger with which the engine process reports refused requests; it outlives new handlers."""
    logger = logging.getLogger(ENGINE_LOGGER)
    if not any(isinstance(known, RefusalFilter) for known in logger.filters):
        logger.addFilter(RefusalFilter())
