"""Micro-batching of encoder calls in one worker thread, off the event loop.

Texts of requests that arrive within a few milliseconds share a forward pass. A request whose caller stopped waiting is
dropped before it costs anything. Background work (whole lists) goes in small slices, so that requests get in between.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from guard.classifiers.encoder import Encoder
from guard.errors import DetectorError, GuardError

Vectors = np.ndarray[Any, np.dtype[np.float32]]
_GATHER_S = 0.002
_MAX_TEXTS = 64


@dataclass(slots=True)
class _Job:
    texts: tuple[str, ...]
    deadline: float
    result: Future[Vectors] = field(default_factory=Future)


class EncoderBatcher:
    """Starts its thread on first use; `close` ends it."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    async def encode(self, texts: Sequence[str], timeout_s: float) -> Vectors:
        """Unit vectors [n, d] of `texts`. Raises TimeoutError, or DetectorError when the encoder fails."""
        if self._closed:
            raise DetectorError("the encoder batcher is closed")
        job = _Job(tuple(texts), time.monotonic() + timeout_s)
        self._start()
        self._jobs.put(job)
        return await asyncio.wait_for(asyncio.wrap_future(job.result), timeout_s)

    def close(self) -> None:
        """End the worker thread; waiting requests fail."""
        self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout=10.0)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="guard-encoder", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            until = time.monotonic() + _GATHER_S
            stopped = False
            while sum(len(j.texts) for j in jobs) < _MAX_TEXTS:
                try:
                    following = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if following is None:
                    stopped = True
                    break
                jobs.append(following)
            self._serve(jobs)
            if stopped:
                break
        self._fail_waiting()

    def _serve(self, jobs: list[_Job]) -> None:
        now = time.monotonic()
        live = [job for job in jobs if job.deadline > now and job.result.set_running_or_notify_cancel()]
        if not live:
            return
        try:
            vectors = self._encoder.encode([text for job in live for text in job.texts])
        # whatever goes wrong in the encoder must reach the waiting requests, or they hang
        except Exception as error:  # noqa: BLE001
            # another error's text may hold a prompt
            known = isinstance(error, GuardError)
            failure = error if known else DetectorError(f"the encoder failed: {type(error).__name__}")
            for job in live:
                job.result.set_exception(failure)
            return
        position = 0
        for job in live:
            job.result.set_result(vectors[position : position + len(job.texts)])
            position += len(job.texts)

    def _fail_waiting(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None and job.result.set_running_or_notify_cancel():
                job.result.set_exception(DetectorError("the encoder batcher is closed"))
