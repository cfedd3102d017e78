"""Which turns of a conversation a question is judged by."""

from __future__ import annotations

from guard.classifiers.follow_up import Conversation
from guard.verdict import Span


def asked_turns(conversation: Conversation) -> tuple[Span, ...]:
    """Character ranges of the turns that the last one is about; where it begins anew, only those not answered yet."""
    spans = {(turn.start, turn.end): turn for turn in conversation.turns}
    earlier = [span for span, turn in spans.items() if span[1] <= conversation.now and turn.role != "system"]
    if not earlier or conversation.touches(earlier):
        return tuple(spans)
    return tuple(span for span in spans if span not in earlier)
