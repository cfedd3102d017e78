"""What the detector says about one prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Part = Literal["lexical", "semantic", "head", "always"]
Span = tuple[int, int]
# why there is no verdict: too slow, failed on this prompt, or the list's trained parts could not be built
Reason = Literal["", "timeout", "error", "not_built"]


@dataclass(frozen=True, slots=True)
class DecodedPrompt:
    """The prompt as the model reads it.

    `token_ids` are the engine's ids; `text` is their decoded text; `offsets[i]` is the half-open character
    range of token i in `text` (empty for tokens without text); `special[i]` marks special and chat-template tokens,
    which are neither classified nor corrupted.
    """

    token_ids: tuple[int, ...]
    text: str
    offsets: tuple[Span, ...]
    special: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class TargetHit:
    """One target that the prompt touches.

    `target` indexes the tenant's forget-list; `score` is calibrated, in [0, 1], 0.5 being the threshold;
    `spans` are character ranges of the prompt text that name the target (empty when only the meaning matched).
    """

    target: int
    score: float
    part: Part
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """All targets a prompt touches, best first. `unknown` means the detector failed: the failure mode decides.

    `reason` says why it is unknown, for logs and metrics; verdicts that differ in it only are equal.
    """

    hits: tuple[TargetHit, ...] = ()
    unknown: bool = False
    reason: Reason = field(default="", compare=False)

    @property
    def flagged(self) -> bool:
        """Whether at least one target is touched."""
        return bool(self.hits)


NOTHING = Verdict()
UNKNOWN = Verdict(unknown=True)
