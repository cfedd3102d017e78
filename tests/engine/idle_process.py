"""Stands for what vLLM starts as a process: says that it runs, then waits."""

from __future__ import annotations

import sys
import time


class Idle:
    """Owner of the entry, as in vLLM."""

    @staticmethod
    def wait(seconds: float) -> None:
        """Print a line and sleep."""
        # in one piece: its parent writes to the same pipe
        sys.stdout.write("running\n")
        sys.stdout.flush()
        time.sleep(seconds)

    @staticmethod
    def fail(name: str, message: str, at_start: bool) -> None:
        """Report an error as vLLM's processes do, then die of it."""
        import logging

        try:
            raise ValueError(message)
        except ValueError:
            logging.getLogger("vllm.v1.engine.core").exception(
                "EngineCore failed to start." if at_start else "EngineCore encountered a fatal error."
            )
            print(name, file=sys.stderr, flush=True)
            raise
