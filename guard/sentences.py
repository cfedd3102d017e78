"""Cuts growing text into finished sentences: pure, character by character, whatever the pieces it arrives in.

The sentences and the rest are the text again, nothing added or left out.
"""

from __future__ import annotations

# a text without any end of sentence is cut here: it must not be held back for ever, and the encoder reads no further
MAX_CHARACTERS = 600
ENDS = ".?!…"
# scripts that write no space after a sentence
WIDE_ENDS = "。？！｡।"
CLOSERS = "\"'”’)]»*_`」』）"
_ABBREVIATIONS = frozenset({"dr", "mr", "mrs", "ms", "prof", "st", "jr", "sr", "vs", "e.g", "i.e"})


class SentenceSplitter:
    """Splits one text. A sentence is finished when what follows its full stop has arrived, or at the end of a line.

    `opened` is text before the first character that belongs to the first sentence (`unfinished` of what came before).
    """

    def __init__(self, opened: str = "") -> None:
        self._pending = opened

    @property
    def pending(self) -> str:
        """Text of the sentence that is not finished yet: all that a splitter knows of what it read."""
        return self._pending

    def feed(self, text: str) -> list[str]:
        """Read more text; the sentences that it finished."""
        finished: list[str] = []
        for character in text:
            if _ended(self._pending, character):
                finished.append(self._take())
            self._pending += character
            full = len(self._pending) >= MAX_CHARACTERS
            if full or (character == "\n" and self._pending.strip()):
                finished.append(self._take())
        return finished

    def flush(self) -> list[str]:
        """The text is complete: the last sentence, if there is one."""
        return [self._take()] if self._pending else []

    def _take(self) -> str:
        sentence, self._pending = self._pending, ""
        return sentence


def split(text: str) -> list[str]:
    """All sentences of a complete text."""
    splitter = SentenceSplitter()
    return splitter.feed(text) + splitter.flush()


def unfinished(text: str) -> str:
    """The sentence that `text` ends in the middle of; a text that goes on there goes on with this sentence."""
    splitter = SentenceSplitter()
    splitter.feed(text)
    return splitter.pending


def _ended(sentence: str, following: str) -> bool:
    """Whether `sentence` is complete now that `following` comes after it."""
    bare = sentence.rstrip(CLOSERS)
    if not bare:
        return False
    if bare[-1] in WIDE_ENDS:
        return following not in CLOSERS + WIDE_ENDS
    if bare[-1] not in ENDS or not following.isspace():
        return False
    word = bare.rstrip(ENDS).rsplit(None, 1)[-1:] if bare[-1] == "." else []
    # an initial or a title does not end a sentence
    return not (word and (word[0].lower() in _ABBREVIATIONS or (len(word[0]) == 1 and word[0].isupper())))
