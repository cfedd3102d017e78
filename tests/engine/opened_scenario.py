"""Answers that must open with a wording, on a real engine."""

from __future__ import annotations

from typing import Any

from cases import OPENINGS, PROMPT_ALONE, SHORT, plan
from harness import Engine, ForbiddenWords

from guard.plan import Constraint, OpenedAnswer


async def opened(engine: Engine, words: ForbiddenWords, tokenizer: Any) -> dict[str, Any]:
    """Answers that must open with a wording: alone, hot in four choices, in a batch beside a free one, and masked."""
    opening = OpenedAnswer(wordings=OPENINGS, start=SHORT)
    bound, free = plan(SHORT, opening=opening, version="opened"), plan(SHORT, version="free")
    masked = bound.model_copy(update={"constraint": Constraint(digest=words.digest, start=SHORT)})
    hot: dict[str, Any] = {"n": 4, "temperature": 2.0, "seed": 3, "max_tokens": 24}
    seen = {
        "alone": [await engine.ask(PROMPT_ALONE, bound, max_tokens=24)],
        "hot": [await engine.ask(PROMPT_ALONE, bound, **hot)],
        "batch": await engine.batch([(PROMPT_ALONE, free), (PROMPT_ALONE, bound)], max_tokens=24),
        "free": [await engine.ask(PROMPT_ALONE, free, max_tokens=24)],
        "masked": [await engine.ask(PROMPT_ALONE, masked, **hot)],
    }
    return {
        name: [tokenizer.decode(tokens, skip_special_tokens=True) for each in found for tokens in each.tokens]
        for name, found in seen.items()
    }
