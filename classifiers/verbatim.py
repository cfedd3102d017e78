"""The runs of words of protected texts that no answer may copy.

Every window of n consecutive words is one string in mask form, so punctuation, case and line breaks do not tell a copy
from its source. In scripts without spaces a run between two separators has many words: two letters count as one.
"""

from __future__ import annotations

from collections.abc import Iterator

from guard.classifiers.normalize import SEPARATOR, mask_form

# letters of one run from which it is no single word; the longest English words are shorter
_LONG_RUN = 24
_LETTERS_PER_WORD = 2
# a text shorter than one window is protected as a whole from this many words on
_SHORTEST = 4


def verbatim_runs(text: str, words: int) -> Iterator[str]:
    """Every run of `words` consecutive words of `text` in mask form, in order, with repetitions.

    A text of fewer words is one run; one of fewer than four has none.
    """
    runs = [run for run in mask_form(text).split(SEPARATOR) if run]
    if any(len(run) > _LONG_RUN for run in runs):
        yield from _unspaced(runs, words)
    elif len(runs) >= words:
        for start in range(len(runs) - words + 1):
            yield SEPARATOR.join(runs[start : start + words])
    elif len(runs) >= _SHORTEST:
        yield SEPARATOR.join(runs)


def _unspaced(runs: list[str], words: int) -> Iterator[str]:
    """Windows that begin where a run begins, because matching needs a left edge, and may end inside one."""
    for start in range(len(runs)):
        left, window = words, []
        for run in runs[start:]:
            size = _words_of(run)
            if size > left:
                window.append(run[: left * _LETTERS_PER_WORD])
                left = 0
            else:
                window.append(run)
                left -= size
            if left == 0:
                break
        if left == 0 or (start == 0 and words - left >= _SHORTEST):
            yield SEPARATOR.join(window)


def _words_of(run: str) -> int:
    return -(-len(run) // _LETTERS_PER_WORD) if len(run) > _LONG_RUN or not run.isascii() and _caseless(run) else 1


def _caseless(run: str) -> bool:
    return run.upper() == run
