"""Refusals of the guard are no errors of vLLM's log; everything else stays in it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from guard.engine.log_filter import ENGINE_LOGGER, SELF_TEST, RefusalFilter, filter_engine_log, filter_server_log
from guard.errors import RequestRefused, ResidencyError, TicketError


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What vLLM's log shows; its handlers are put back."""
    root = logging.getLogger("vllm")
    before, level, propagate = root.handlers[:], root.level, root.propagate
    stream = io.StringIO()
    root.handlers = [logging.StreamHandler(stream)]
    root.setLevel(logging.INFO)
    root.propagate = False
    yield stream
    root.handlers, root.propagate = before, propagate
    root.setLevel(level)
    engine = logging.getLogger(ENGINE_LOGGER)
    for known in [one for one in engine.filters if isinstance(one, RefusalFilter)]:
        engine.removeFilter(known)


def report(name: str, error: Exception, message: str = "Error in chat completion stream generator.") -> None:
    """Log an exception as vLLM does."""
    try:
        raise error
    except type(error):
        logging.getLogger(name).exception(message)


def test_a_refused_stream_logs_nothing(written: io.StringIO) -> None:
    filter_server_log()
    report("vllm.entrypoints.openai.chat_completion.serving", RequestRefused("no", code="content_filter"))
    assert written.getvalue() == ""


@pytest.mark.parametrize("error", [ValueError("broken"), ResidencyError("not loaded"), RuntimeError("RequestRefused")])
def test_other_errors_keep_their_traceback(written: io.StringIO, error: Exception) -> None:
    filter_server_log()
    filter_engine_log()
    report("vllm.entrypoints.openai.chat_completion.serving", error)
    report(ENGINE_LOGGER, error)
    assert written.getvalue().count("Traceback") == 2


def test_the_self_tests_request_without_a_ticket_logs_nothing(written: io.StringIO) -> None:
    filter_engine_log()
    report(ENGINE_LOGGER, TicketError("request has no guard ticket"), f"Unexpected error: request {SELF_TEST}12-ab")
    assert written.getvalue() == ""


def test_another_request_without_a_ticket_is_one_warning(written: io.StringIO) -> None:
    filter_engine_log()
    report(ENGINE_LOGGER, TicketError("ticket has expired"), "Unexpected error pre-processing request cmpl-1")
    assert written.getvalue() == "the guard refused a request in the engine: ticket has expired\n"


def test_routes_that_the_guard_does_not_serve_are_not_listed(written: io.StringIO) -> None:
    filter_server_log()
    logger = logging.getLogger("vllm.entrypoints.launchers.launcher")
    logger.info("Available routes are:")
    logger.info("Route: %s, Methods: %s", "/tokenize", "POST")
    logger.info("[shutdown] API server: shutdown triggered")
    assert written.getvalue() == "[shutdown] API server: shutdown triggered\n"


def test_filters_are_set_once(written: io.StringIO) -> None:
    filter_server_log()
    filter_server_log()
    assert len(logging.getLogger("vllm").handlers[0].filters) == 1
