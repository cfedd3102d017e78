"""One caller at a time; those that a request waits for go first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A lock with two classes of callers: one that is not in a hurry never overtakes one that is."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._busy = False
        self._hurried = 0

    @contextmanager
    def take(self, *, hurried: bool) -> Iterator[None]:
        """Wait for a turn and have it for the length of the block. Not re-entrant."""
        with self._condition:
            self._hurried += hurried
            try:
                self._condition.wait_for(lambda: not self._busy and (hurried or not self._hurried))
                self._busy = True
            finally:
                self._hurried -= hurried
        try:
            yield
        finally:
            with self._condition:
                self._busy = False
                self._condition.notify_all()
