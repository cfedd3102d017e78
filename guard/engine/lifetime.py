"""Whatever way the server goes, its processes go too.

vLLM starts an engine process, and that one workers. They are told to end by messages, which a killed process cannot
send and a process that still loads does not read. So every process asks the kernel to be killed when its parent ends
(Linux, `PR_SET_PDEATHSIG`), as the first thing that it does: `tie_processes` replaces what vLLM starts by a
`TiedProcess`, and multiprocessing hands that over before the engine's configuration, whose reading imports vLLM.

The kernel watches the thread that started the process; vLLM starts them from main threads, which live to the end.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from guard.engine.log_filter import filter_engine_log
from guard.engine.start_failure import keep_start_failures
from guard.errors import EngineMismatchError

ENGINE = ("vllm.v1.engine.core", "EngineCoreProc", "run_engine_core")
WORKER = ("vllm.v1.executor.multiproc_executor", "WorkerProc", "worker_main")
KILL_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1
_WARNINGS, _NO_LEAKS = "PYTHONWARNINGS", "ignore:resource_tracker:UserWarning"

Entry = tuple[str, str, str]


class TiedProcess:
    """What a process of vLLM runs (`entry`: module, class, function), tied to the process that starts it.

    `failures` is the file in which a failing start leaves its errors (see `guard.engine.start_failure`).
    """

    def __init__(self, entry: Entry, failures: Path | None, stock: Callable[..., Any] | None = None) -> None:
        self._entry, self._failures, self._stock = entry, failures, stock

    def __reduce__(self) -> tuple[Any, ...]:
        # for a spawned process: it ties itself while it still reads what it has to do
        return _arrive, (os.getpid(), self._entry, self._failures)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid is not None:
            # for a forked process, which read nothing
            end_with_parent(parent.pid)
        stock = self._stock or _stock(self._entry)
        if self._entry == ENGINE:
            tie(WORKER, self._failures)
            filter_engine_log()
        with keep_start_failures(self._failures):
            return stock(*arguments, **options)


def tie_processes(failures: Path | None = None) -> None:
    """Let the engine process that this process starts, and its workers, end with it. Raises EngineMismatchError."""
    quiet_resource_tracker()
    tie(ENGINE, failures)


def tie(entry: Entry, failures: Path | None) -> None:
    """Replace what vLLM starts as a process by a tied one. Raises EngineMismatchError when vLLM has no such entry."""
    owner, name = _owner(entry), entry[2]
    known = owner.__dict__.get(name)
    if isinstance(known, TiedProcess):
        known = known._stock
    setattr(owner, name, TiedProcess(entry, failures, getattr(known, "__func__", known) or _stock(entry)))


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent (process id) ends; end now if that has happened already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refused to tie this process to the one that started it")
    if os.getppid() != parent:
        os._exit(1)


def kill_descendants() -> None:
    """Kill every process below this one, whatever it is doing, and wait until they are gone.

    Python's resource tracker is left: it ends with this process, and removes the shared memory of the killed ones.
    """
    tracker = getattr(resource_tracker, "_resource_tracker", None)
    below = [one for one in psutil.Process().children(recursive=True) if one.pid != getattr(tracker, "_pid", None)]
    for process in below:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(below, timeout=KILL_TIMEOUT_S)


def quiet_resource_tracker() -> None:
    """Start Python's resource tracker so that it cleans up after killed processes without a warning about them."""
    known = os.environ.get(_WARNINGS)
    os.environ[_WARNINGS] = f"{known},{_NO_LEAKS}" if known else _NO_LEAKS
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ[_WARNINGS]
        if known:
            os.environ[_WARNINGS] = known


def stop_on_signals(stopped: Callable[[str], None]) -> None:
    """Until vLLM takes the signals over, SIGTERM and SIGINT end this process and all below it at once, with code 0.

    A start has nothing to finish; `stopped` is called with the signal's name, after the others are gone.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        kill_descendants()
        stopped(signal.Signals(number).name)
        sys.stdout.flush()
        sys.stderr.flush()
        # not by an exception: vLLM's start would log it on its way, and wait for processes that are gone
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _arrive(parent: int, entry: Entry, failures: Path | None) -> TiedProcess:
    end_with_parent(parent)
    return TiedProcess(entry, failures)


def _stock(entry: Entry) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(_owner(entry), entry[2])
    return function


def _owner(entry: Entry) -> Any:
    module, owner, name = entry
    found = getattr(importlib.import_module(module), owner, None)
    if not callable(getattr(found, name, None)):
        raise EngineMismatchError(f"vLLM has no {owner}.{name} in {module}; its processes could outlive the server")
    return found
