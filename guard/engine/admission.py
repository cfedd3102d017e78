"""What the gate and the engine client tell each other about a request.

The context is made by the HTTP layer and read by the client when a route calls `generate`; the gate answers with an
admission, the only thing with which a generation can start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from guard.errors import RequestRefused
from guard.plan import Plan
from guard.policy import Tenant
from guard.stream import OutputMatcher


@dataclass(slots=True, eq=False)
class RequestContext:
    """One HTTP request on its way through the server; made by the authentication middleware.

    `prompts` is the number of generations that the request will start, `prompt_field` the body's field that holds them.
    `decided` is set when all are admitted or one is refused: until then no byte of the response is sent.
    """

    request_id: str
    tenant: Tenant
    prompts: int = 1
    prompt_field: str = "messages"
    refusal: RequestRefused | None = None
    admitted: int = 0
    decided: asyncio.Event = field(default_factory=asyncio.Event)

    def admit(self) -> None:
        """Count one admitted generation."""
        self.admitted += 1
        if self.admitted >= self.prompts:
            self.decided.set()

    def refuse(self, error: RequestRefused) -> None:
        """Remember the first refusal; it becomes the response."""
        self.refusal = self.refusal or error
        self.decided.set()


CURRENT_REQUEST: ContextVar[RequestContext | None] = ContextVar("guard_request", default=None)


@dataclass(frozen=True, slots=True)
class IgnoranceEnd:
    """An answer that opens with one of `wordings` ends after `sentences`.

    One that says nothing after its wording is completed by `rest`.
    """

    wordings: tuple[str, ...]
    sentences: int
    rest: str = ""


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """What the generated text is compared with, and where it ends.

    `matcher` has read the text before the answer, of which a forbidden string may be the end; every choice forks it.
    `targets` are the targets whose answers each sentence is compared with by meaning (none: not compared);
    `opened_sentence` is the text before the answer that belongs to its first sentence. `names` are the strings of the
    matcher that name a target: an answer that contains one belongs to a flagged request. `end` says where an answer of
    ignorance ends.
    """

    matcher: OutputMatcher
    max_rollbacks: int
    targets: tuple[int, ...] = ()
    opened_sentence: str = ""
    names: frozenset[int] = frozenset()
    end: IgnoranceEnd | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """Leave to run one generation: the signed plan, its cache salt and the output check (None: nothing to check).

    vLLM itself adds `bias` to the logits of these tokens, and says none but `allowed` (empty: all). Both steer: what
    may not be said is in the plan.
    """

    plan: Plan
    ticket: str
    salt: str
    check: OutputCheck | None = None
    bias: Mapping[int, float] = field(default_factory=dict)
    allowed: tuple[int, ...] = ()


class Leave(Protocol):
    """One admitted generation. What its plan needs stays resident until the context that gave it is left."""

    @property
    def admission(self) -> Admission:
        """What the generation runs with now."""
        ...

    async def resume(self, token_ids: Sequence[int]) -> Admission:
        """Admit the continuation after a roll-back, with the constraint on. Raises RequestRefused."""
        ...

    async def flag(self, token_ids: Sequence[int], text: str) -> Admission:
        """Admit the generation again as one whose prompt was flagged, because its answer named a target.

        `text` is what was said of the answer and cannot be taken back; `token_ids` are the prompt and the tokens of
        `text`. The admission has a check of its own. Raises RequestRefused.
        """
        ...

    async def similar(self, sentence: str) -> bool:
        """Whether a sentence means what an answer of the check's targets says.

        Raises DetectorError when that cannot be told and the policy fails closed.
        """
        ...

    def count_output(self, *, held_back: int = 0, rollbacks: int = 0, filtered: int = 0) -> None:
        """Count held-back tokens, answers rolled back and continued, and answers that ended with `content_filter`."""
        ...


class Gate(Protocol):
    """Decides about every generation. Implemented by the service."""

    def admit_now(self, context: RequestContext, token_ids: Sequence[int]) -> Admission | None:
        """Admit at once where nothing has to be looked at (empty forget-list), else None."""
        ...

    def admitted(self, context: RequestContext, token_ids: Sequence[int]) -> AbstractAsyncContextManager[Leave]:
        """Admit on entry, or raise RequestRefused there; give back what was held on exit."""
        ...
