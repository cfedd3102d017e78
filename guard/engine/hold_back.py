"""Text of one answer that is not yet known to be clean.

Text is released in whole tokens, and only when no forbidden string can begin in it. Where sentences are compared by
meaning as well, text also waits until its sentence is finished and was compared.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from vllm.outputs import CompletionOutput

from guard.engine.admission import OutputCheck
from guard.sentences import SentenceSplitter


@dataclass(frozen=True, slots=True)
class _Place:
    """How far the answer was read: place of the matcher, and the sentence that was not finished there."""

    matcher: int
    sentence: str


class HoldBack:
    """Deltas of one choice go in as they come and out in whole tokens; `roll_back` drops those that wait."""

    def __init__(self, check: OutputCheck) -> None:
        self._matcher = check.matcher.fork()
        self._names = check.names
        self._compares = bool(check.targets)
        self._released = _Place(self._matcher.place, check.opened_sentence)
        self.roll_back()

    def roll_back(self) -> None:
        """Forget what waits: the answer goes on after the last token that was released."""
        self._matcher.go_back(self._released.matcher)
        self._waiting: deque[tuple[CompletionOutput, _Place]] = deque()
        self._clean_characters = 0
        self._splitter = SentenceSplitter(self._released.sentence)
        # a sentence that began before is compared as a whole, but only its new part waits here
        self._compared_characters = -len(self._released.sentence)
        self._sentences: deque[str] = deque()

    @property
    def named(self) -> bool:
        """Whether the forbidden string that was found names a target, in an answer that was not flagged."""
        return self._matcher.found in self._names

    @property
    def waits(self) -> bool:
        """Whether tokens are held back now."""
        return any(delta.token_ids for delta, _ in self._waiting)

    def push(self, delta: CompletionOutput) -> bool:
        """Take a delta; True when its text completes a forbidden string."""
        released = self._matcher.feed(delta.text)
        self._clean_characters += len(released.text)
        if self._compares:
            self._sentences.extend(self._splitter.feed(delta.text))
            if delta.finish_reason is not None:
                self._sentences.extend(self._splitter.flush())
        self._waiting.append((delta, _Place(self._matcher.place, self._splitter.pending)))
        if released.hit or delta.finish_reason is None:
            return released.hit
        characters = sum(len(waiting.text) for waiting, _ in self._waiting)
        if isinstance(delta.stop_reason, str) and self._matcher.feed(delta.stop_reason).hit:
            # the stop string is cut off, but an answer that ends just there would confirm a guess
            self._clean_characters = min(self._clean_characters, characters - 1)
            return True
        # no text follows that could complete a string
        self._clean_characters = characters
        return False

    def next_sentence(self) -> str | None:
        """The first finished sentence that was not compared yet."""
        return self._sentences[0] if self._sentences else None

    def passed(self) -> None:
        """The sentence that `next_sentence` gave is clean."""
        self._compared_characters += len(self._sentences.popleft())

    def pop_clean(self) -> list[CompletionOutput]:
        """Deltas whose whole text is clean. A token without text waits for the text it is a part of."""
        count, end = 0, 0
        limit = self._clean_characters
        if self._compares:
            limit = min(limit, self._compared_characters)
        for position, (delta, _) in enumerate(self._waiting, start=1):
            end += len(delta.text)
            if end > limit:
                break
            if delta.text or delta.finish_reason is not None:
                count = position
        popped = [self._waiting.popleft() for _ in range(count)]
        clean = [delta for delta, _ in popped]
        if popped:
            self._released = popped[-1][1]
        characters = sum(len(delta.text) for delta in clean)
        self._clean_characters -= characters
        self._compared_characters -= characters
        return clean
