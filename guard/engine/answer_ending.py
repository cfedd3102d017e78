"""Ends the deltas of an answer of ignorance where its sentence ends."""

from __future__ import annotations

import copy

from vllm.outputs import CompletionOutput

from guard.answer_end import AnswerEnd
from guard.engine.admission import IgnoranceEnd


class AnswerEnding:
    """Cuts the deltas of one choice."""

    def __init__(self, end: IgnoranceEnd) -> None:
        self._end = end
        self.begin_after("")

    def begin_after(self, said: str) -> None:
        """The answer so far is `said`."""
        self._reader = AnswerEnd(self._end.wordings, self._end.sentences, self._end.rest)
        self._reader.feed(said)

    def cut(self, delta: CompletionOutput) -> CompletionOutput:
        """The delta as it may be said; the last one of the answer has a finish reason."""
        ending = self._reader.feed(delta.text)
        text, reason = ending.text, "stop" if ending.done else delta.finish_reason
        if not ending.done and delta.finish_reason is not None:
            text += self._reader.flush().text
        own = copy.copy(delta)
        own.text, own.finish_reason = text, reason
        return own
