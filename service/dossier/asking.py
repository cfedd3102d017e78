"""Asks the served model through its HTTP API, with the key of a tenant that has no forget-list.

Answers of a tenant with a list would be what the guard lets through, not what the model knows: every answer's header
`x-guard-action` must say `pass`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from guard.errors import ConfigurationError

CONCURRENCY = 32
TIMEOUT_S = 300.0
# shorter than a server keeps an idle connection, so that none is used that it is about to close
KEEP_ALIVE_S = 2.0
ATTEMPTS = 3
ACTION_HEADER = "x-guard-action"
UNGUARDED = "pass"
# its greedy answer tells one model from another under the same name
CANARY = "Name three rivers and three mountains."
CANARY_TOKENS = 16
_CLAUSE_END = re.compile(r"[.,;:!?](?=\s)|\n")


@dataclass(frozen=True, slots=True)
class Draw:
    """One answer to `question` at `temperature`, of at most `tokens` tokens."""

    question: str
    temperature: float = 0.0
    tokens: int = 40
    seed: int = 0


class Served:
    """A running server and the model to ask. Use it as an asynchronous context."""

    def __init__(self, url: str, key: str, model: str = "") -> None:
        """`model`: its served name; empty for the first that the server lists. Raises ConfigurationError for a URL
        that is none."""
        self.url = url.rstrip("/")
        self.model = model
        self.fingerprint = ""
        try:
            self._http = httpx.AsyncClient(
                base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT_S, trust_env=False,
                limits=httpx.Limits(max_connections=CONCURRENCY, keepalive_expiry=KEEP_ALIVE_S),
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ConfigurationError("the address or the key has a form that no server takes: check --url and --key") \
                from error
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def check(self) -> None:
        """See that the server answers, takes the key, serves the model and does not guard the key's tenant; sets
        `model` and `fingerprint`.

        Raises ConfigurationError that says which of these fails.
        """
        listed = await self._send("GET", "/v1/models", None)
        try:
            names = [str(entry["id"]) for entry in listed["data"]]
        except (KeyError, TypeError) as error:
            raise ConfigurationError(f"what answers at {self.url} is no model server") from error
        if not names:
            raise ConfigurationError(f"the server at {self.url} serves no model")
        if self.model and self.model not in names:
            raise ConfigurationError(f"the server at {self.url} has no such model; it serves {', '.join(names)}")
        self.model = self.model or names[0]
        canary = await self.ask(Draw(CANARY, tokens=CANARY_TOKENS))
        self.fingerprint = hashlib.sha256(f"{self.model}\x1f{canary}".encode()).hexdigest()[:16]

    async def ask(self, draw: Draw) -> str:
        """The answer to one draw, without surrounding space; what was cut off in the middle of a name is left out.

        Raises ConfigurationError as `check`.
        """
        body = {
            "model": self.model, "messages": [{"role": "user", "content": draw.question}],
            "max_tokens": draw.tokens, "temperature": draw.temperature, "seed": draw.seed,
        }
        async with self._slots:
            answer = await self._send("POST", "/v1/chat/completions", body)
        try:
            choice = answer["choices"][0]
            return _whole_part(choice["message"].get("content") or "", choice.get("finish_reason") == "length")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"what answers at {self.url} is no chat completion") from error

    async def ask_all(self, draws: Sequence[Draw], advance: Callable[[], None] = lambda: None) -> list[str]:
        """The answers to `draws`, in their order; `advance` is called after each. The first failure ends them all."""

        async def one(draw: Draw) -> str:
            text = await self.ask(draw)
            advance()
            return text

        tasks = [asyncio.ensure_future(one(draw)) for draw in draws]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        response = await self._response(method, path, body)
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise ConfigurationError(
                f"the server at {self.url} refused the key: give that of a tenant without a list by --key or GUARD_KEY"
            )
        try:
            answer = response.json()
        except ValueError as error:
            raise ConfigurationError(f"what answers at {self.url} is no model server") from error
        if not isinstance(answer, dict):
            raise ConfigurationError(f"what answers at {self.url} is no model server")
        if response.status_code != httpx.codes.OK:
            fault = answer.get("error")
            code = fault.get("code") if isinstance(fault, dict) else None
            raise ConfigurationError(f"the server at {self.url} answered {response.status_code} {code or ''}".rstrip())
        if body is not None and response.headers.get(ACTION_HEADER, UNGUARDED) != UNGUARDED:
            raise ConfigurationError(
                "this key belongs to a tenant with a forget-list or edits, whose answers are guarded: give the key of "
                "a tenant without a list, because the dossier is what the unguarded model says"
            )
        return answer

    async def _response(
        self, method: str, path: str, body: dict[str, Any] | None, attempts: int = ATTEMPTS
    ) -> httpx.Response:
        try:
            return await self._http.request(method, path, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # a connection that broke while it was used; asking once more does no harm
            if attempts > 1 and isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
                return await self._response(method, path, body, attempts - 1)
            raise ConfigurationError(
                f"no server answers at {self.url} ({type(error).__name__}): start `guard serve` or set --url"
            ) from error


def _whole_part(text: str, cut: bool) -> str:
    """`text` without the title or name in which it was cut off."""
    text = text.strip()
    if not cut:
        return text
    ends = [match.end() for match in _CLAUSE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends and ends[-1] > len(text) // 2 else text.rpartition(" ")[0] or text
