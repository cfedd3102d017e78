"""Every error body that a client can see: OpenAI shapes, Azure's content filter, and a fixed list of messages.

Messages never contain prompts, keys, forget terms, addresses or the engine's own texts.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from guard.errors import RequestRefused

CONTENT_FILTER_MESSAGE = (
    "The response was filtered due to the prompt triggering this service's content policy. "
    "Please modify your prompt and retry."
)
MESSAGES = {
    400: "The request is not valid.",
    401: "Missing or invalid API key. Send it as `Authorization: Bearer <key>`.",
    403: "This request is not allowed.",
    404: "Not found.",
    405: "This method is not allowed here.",
    413: "The request body is too large.",
    415: "The request body must be uncompressed UTF-8 JSON (`Content-Type: application/json`).",
    429: "Too many requests. Retry later.",
    500: "The server had an error while processing the request.",
    503: "The server is not available. Retry later.",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    400: "invalid_request", 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    413: "request_too_large", 415: "unsupported_media_type", 429: "rate_limit_exceeded", 500: "internal_error",
    503: "service_unavailable",
}
_CONTEXT_LENGTH = re.compile(r"maximum context length|max_tokens|max_completion_tokens|max_model_len|context length")
_PARAMETER = re.compile(r"^[a-z_]{1,40}$")


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An HTTP error: status, JSON body and headers beyond content type and length."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def error_response(status: int, message: str = "", *, code: str = "", param: str | None = None,
                   retry_after_s: int | None = None) -> ErrorResponse:
    """An error in OpenAI's shape; message and code default to the catalogue's."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error: dict[str, object] = {
        "message": message or MESSAGES.get(status, MESSAGES[500]),
        "type": kind,
        "param": param,
        "code": code or _CODES.get(status, "internal_error"),
    }
    if error["code"] == "content_filter":
        error["innererror"] = {"code": "ResponsibleAIPolicyViolation"}
    headers = [] if retry_after_s is None else [("retry-after", str(retry_after_s))]
    if status == 401:
        headers.append(("www-authenticate", "Bearer"))
    return ErrorResponse(status, json.dumps({"error": error}, separators=(",", ":")).encode(), tuple(headers))


def refusal_response(error: RequestRefused) -> ErrorResponse:
    """The response for a request that the gate or the rules refused."""
    return error_response(
        error.status, str(error), code=error.code, param=error.param, retry_after_s=error.retry_after_s
    )


def content_filter_refusal(param: str = "messages", message: str = "") -> RequestRefused:
    """A prompt that policy refuses, in the shape of Azure's content filter; `message` in place of the usual one."""
    return RequestRefused(message or CONTENT_FILTER_MESSAGE, code="content_filter", param=param)


def unavailable(retry_after_s: int = 2) -> RequestRefused:
    """The guard cannot decide: fail closed, worth a retry."""
    return RequestRefused(
        "The guard is not available at the moment. Retry later.", status=503, code="guard_unavailable",
        retry_after_s=retry_after_s,
    )


def engine_error(status: int, body: bytes) -> ErrorResponse:
    """The catalogue's error for an error of the engine. Only length errors keep a hint of what was wrong."""
    try:
        error = json.loads(body).get("error", {})
        message, param = str(error.get("message", "")), error.get("param")
    except (ValueError, AttributeError):
        message, param = "", None
    known_param = param if isinstance(param, str) and _PARAMETER.match(param) else None
    if status == 400 and _CONTEXT_LENGTH.search(message):
        return error_response(
            400, "The prompt and the requested output do not fit into the model's context length.",
            code="context_length_exceeded", param=known_param,
        )
    retry = 2 if status in (429, 503) else None
    return error_response(status if status in MESSAGES else (400 if status < 500 else 500), param=known_param,
                          retry_after_s=retry)
