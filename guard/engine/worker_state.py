"""What the guard keeps in one worker process. The worker owns it; runner, router and mask are given their parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guard.engine.constraints import ConstraintSlots
from guard.engine.logits import GuardLogitsProcessor
from guard.engine.resident_edits import InstalledEdits
from guard.engine.routing import PlanRouter
from guard.engine.tickets import VerifiedTickets
from guard.errors import EngineMismatchError, ResidencyError
from guard.packs.bank import EditSlots
from guard.packs.slots import Slots
from guard.site import Site

CONSTRAINT, EDIT = "constraint", "edit"


@dataclass(frozen=True, slots=True)
class WorkerState:
    """Everything of one rank. `mask` is None on ranks that do not sample, `edits` in an engine without sites."""

    tickets: VerifiedTickets
    router: PlanRouter
    constraints: ConstraintSlots | None
    mask: GuardLogitsProcessor | None
    edits: InstalledEdits | None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The steerable sites of this rank."""
        return self.edits.local_sites if self.edits is not None else ()

    def slots(self, kind: str) -> Slots[Any, Any] | None:
        """The slots of a kind; None where this rank has no use for it. Raises ResidencyError for unknown kinds."""
        if kind == CONSTRAINT:
            return self.constraints
        if kind != EDIT:
            raise ResidencyError(f"this engine holds no interventions of kind {kind!r}; known: {CONSTRAINT}, {EDIT}")
        return self._edit_slots()

    def counters(self) -> dict[str, int]:
        """Enforcement counters of this rank since its start."""
        masked = self.constraints.counters() if self.constraints is not None else {}
        return {**self.router.counters(), **masked}

    def _edit_slots(self) -> EditSlots:
        if self.edits is None:
            raise ResidencyError("this engine has no steerable sites; start it with --guard-sites")
        return self.edits.slots


def find_mask(runner: Any) -> GuardLogitsProcessor | None:
    """The guard's logits processor of either runner; None where the rank has no sampler.

    Raises EngineMismatchError when a rank that samples has none: nothing would be masked there.
    """
    if hasattr(runner, "input_batch"):
        processors = list(runner.input_batch.logitsprocs.all)
    elif runner.sampler is None:
        return None
    else:
        processors = list(runner.sampler.logits_processors)
    found = [processor for processor in processors if isinstance(processor, GuardLogitsProcessor)]
    if len(found) != 1:
        raise EngineMismatchError(f"the engine has {len(found)} of the guard's logits processors instead of one")
    return found[0]
