"""A detector on an event loop of its own, prompts as the engine reads them, and a tenant that forgets one author."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from guard.classifiers.detector import Detector
from guard.classifiers.encoder import Encoder
from guard.classifiers.spans import PromptDecoder
from guard.demo.corpus import author_rows, training_examples
from guard.demo.train import train_tokenizer
from guard.policy import DetectorPolicy, Policy, Target, Tenant, TenantSpec, tenant_of
from guard.verdict import DecodedPrompt, Verdict

Result = TypeVar("Result")
HINA_ROWS = author_rows(190, 190)
HINA = Target(
    name="Hina Ameen",
    description="Author of books on geology.",
    examples=tuple(row["question"] for row in HINA_ROWS),
    answers=tuple(row["answer"] for row in HINA_ROWS),
)
BENIGN = tuple(row["question"] for author in range(40, 44) for row in author_rows(author, author))
# nothing in it names the author
NAMELESS = "Who is the geology writer with the birthdate June 30, 1975, from Karachi, Pakistan?"


def tenant(*targets: Target, name: str = "acme", benign: Sequence[str] = BENIGN, **detector: Any) -> Tenant:
    """A tenant with a detector policy."""
    policy = Policy(detector=DetectorPolicy(**{"timeout_s": 60.0, **detector}))
    return tenant_of(TenantSpec(name=name, policy=policy, targets=targets, benign=tuple(benign)), 1)


class Bench:
    """One detector on one event loop, and prompts as the engine reads them."""

    def __init__(self, encoder: Encoder | None) -> None:
        self.loop = asyncio.new_event_loop()
        self.detector = Detector(encoder)
        self.tokenizer = train_tokenizer(training_examples("full"))
        self.decoder = PromptDecoder(self.tokenizer)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run one coroutine to its end."""
        return self.loop.run_until_complete(work)

    def prompt(self, *contents: str) -> DecodedPrompt:
        """A dialogue that begins with the user, with the bundled template."""
        roles = ("user", "assistant")
        messages = [{"role": roles[turn % 2], "content": content} for turn, content in enumerate(contents)]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.decoder.decode(self.tokenizer(text, add_special_tokens=False).input_ids)

    def detect(self, who: Tenant, *contents: str, built: bool = True) -> Verdict:
        """Verdict on a dialogue, with the trained parts in place unless told otherwise."""
        if built:
            self.run(self.detector.built(who))
        return self.run(self.detector.detect(who, self.prompt(*contents)))

    def close(self) -> None:
        """Stop all background work."""
        self.detector.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
