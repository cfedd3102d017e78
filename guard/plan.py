"""What the engine must do to one request: small, numeric, and signed when it travels (see `guard.ticket`)."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

CorruptionKind = Literal["gauss", "zero_top", "flip_sign", "erase"]
Phase = Literal["prompt", "generation", "both"]
MAX_EXEMPT_PATTERNS = 16
MAX_LANES = 4
MAX_WORDINGS = 256
MAX_STRENGTH = 100.0


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Corruption(_Frozen):
    """Corrupt the raw embedding rows of `ranges` (half-open absolute prompt positions, sorted, disjoint).

    `dims` = 0 means all dimensions. `rho` is the noise norm per dimension in units of ||e||/sqrt(d) for `gauss` when
    dims = 0, i.e. sigma = rho * ||e|| / sqrt(number of corrupted dims); unused by the other kinds.
    Source: ECO, arXiv 2406.07933.
    """

    kind: CorruptionKind = "gauss"
    dims: Annotated[int, Field(ge=0, le=65536)] = 0
    rho: Annotated[float, Field(ge=0.0, le=1000.0, allow_inf_nan=False)] = 5.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    ranges: tuple[tuple[int, int], ...] = ()


class Constraint(_Frozen):
    """Mask every token that would complete a forbidden string of the automaton `digest`.

    The text that counts begins at absolute position `start` (prompt tokens before it do not take part in a match);
    patterns in `exempt` (indices into the automaton's pattern list) may appear.
    """

    digest: str
    start: Annotated[int, Field(ge=0)]
    exempt: Annotated[tuple[int, ...], Field(max_length=MAX_EXEMPT_PATTERNS)] = ()


class OpenedAnswer(_Frozen):
    """The answer, which begins at absolute position `start`, must begin with one of the `wordings`."""

    wordings: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=400)], ...], Field(min_length=1, max_length=MAX_WORDINGS)
    ]
    start: Annotated[int, Field(ge=0)]


class EditLane(_Frozen):
    """One activation edit: a pack by content hash, its strength and the phase it acts in."""

    pack: str
    strength: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    phase: Phase = "both"


class Plan(_Frozen):
    """The whole plan of a request. A plan without interventions is the empty plan: bitwise stock vLLM.

    `answer_start` is set when an answer goes on after a roll-back: the tokens from there on were generated, although
    they are now sent as a part of the prompt, and edits treat them so.
    """

    tenant_index: Annotated[int, Field(ge=0)]
    policy_version: str
    prompt_length: Annotated[int, Field(ge=1)]
    answer_start: Annotated[int, Field(ge=1)] | None = None
    corruption: Corruption | None = None
    constraint: Constraint | None = None
    opening: OpenedAnswer | None = None
    edits: Annotated[tuple[EditLane, ...], Field(max_length=MAX_LANES)] = ()

    @property
    def empty(self) -> bool:
        """Whether the engine has nothing to do."""
        return self.corruption is None and self.constraint is None and self.opening is None and not self.edits

    @property
    def phase_boundary(self) -> int:
        """First position whose token belongs to the phase `generation`."""
        return self.prompt_length if self.answer_start is None else min(self.answer_start, self.prompt_length)

    @property
    def packs(self) -> tuple[str, ...]:
        """Content hashes of the packs that must be resident."""
        return tuple(edit.pack for edit in self.edits)

    def digest(self) -> str:
        """Hex SHA-256 of the canonical JSON of the plan: the identity used in cache salts."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def corrupted_tokens(self) -> int:
        """Number of prompt positions that the corruption covers."""
        return sum(end - start for start, end in self.corruption.ranges) if self.corruption else 0
