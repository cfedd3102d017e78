"""Those that a request waits for go first."""

from __future__ import annotations

import threading
import time

from guard.classifiers.turns import Turns


def test_a_hurried_caller_overtakes_those_that_are_not() -> None:
    turns, order = Turns(), []

    def work(name: str, hurried: bool) -> None:
        with turns.take(hurried=hurried):
            order.append(name)
            time.sleep(0.005)

    callers = [("slow 1", False), ("slow 2", False), ("fast", True)]
    threads = [threading.Thread(target=work, args=caller) for caller in callers]
    with turns.take(hurried=False):
        for thread in threads:
            thread.start()
            time.sleep(0.05)
    for thread in threads:
        thread.join(5.0)
    assert order[0] == "fast" and sorted(order[1:]) == ["slow 1", "slow 2"]


def test_an_error_gives_the_turn_back() -> None:
    turns = Turns()
    try:
        with turns.take(hurried=True):
            raise ValueError
    except ValueError:
        pass
    with turns.take(hurried=False):
        pass
