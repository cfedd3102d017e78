"""Why a start failed, in one line that says what to change.

The error that ends a start is raised in a process of vLLM, which logs it and dies; the server only learns that a
process is gone. `keep_start_failures` runs in those processes: it takes exactly the two log records with which vLLM
reports a failed start out of the log and leaves them in a file, which the server reads (`take_failures`), explains
(`explain`) and keeps whole for whoever wants the traces (`write_traces`). Once a process has started, nothing is held
back.
"""

from __future__ import annotations

import json
import logging
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from guard import errors
from guard.errors import GuardError

# logger -> the message with which it reports a failed start
_REPORTS = {
    "vllm.v1.engine.core": "EngineCore failed to start.",
    "vllm.v1.executor.multiproc_executor": "WorkerProc failed to start.",
}
# an engine process that only says that another process failed
_SECOND_HAND = ("WorkerProc initialization failed", "Engine core initialization failed")
_SIZE = "VLLM_CPU_KVCACHE_SPACE or --kv-cache-memory-bytes"
# what vLLM says -> what to change; groups are filled in by name
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"\((?P<free>[\d.]+)/[\d.]+ GiB\)\s+on kv cache allocation is less than requested memory for kv "
        r"\((?P<asked>[\d.]+)",
        f"not enough memory for the cache: {{asked}} GiB are asked for and {{free}} GiB are free; lower {_SIZE}, or "
        "leave both out",
    ),
    (
        r"\((?P<free>[\d.]+)/[\d.]+ GiB\) on startup is less than desired CPU memory utilization "
        r"\([\d.]+, (?P<asked>[\d.]+) GiB",
        "not enough memory: --gpu-memory-utilization asks for {asked} GiB and {free} GiB are free; lower it, or leave "
        "it out",
    ),
    (
        r"max seq len \((?P<length>\d+)\), \(?(?P<asked>[\d.]+) GiB KV cache is needed.*?memory \((?P<given>[\d.]+) GiB"
        r"\)(?:.*?maximum model length is (?P<fits>\d+))?",
        f"the cache is too small for one request of {{length}} tokens: {{asked}} GiB are needed and {{given}} GiB are "
        f"set; raise {_SIZE}, or lower --max-model-len{{fits}}",
    ),
    (
        r"No available memory for the cache blocks",
        f"no memory is left for the cache; raise --gpu-memory-utilization or {_SIZE}",
    ),
    (
        r"User-specified max_model_len \((?P<length>\d+)\) is greater than the derived max_model_len "
        r"\((?:[a-z_]+=)?(?P<limit>\d+)",
        "--max-model-len {length} is more than the model was made for ({limit}); lower it",
    ),
    (
        r"Model architectures \[(?P<names>[^\]]*)\] (?:are not supported|failed to be inspected)",
        "vLLM cannot serve a model of the architecture {names}",
    ),
    (
        r"is not a local folder|not a valid model identifier|RepositoryNotFound|LocalEntryNotFound|Repo id must|"
        r"couldn't connect to|Can't load the configuration",
        "model not found: it is neither a folder with a config.json nor a model that can be fetched by that name",
    ),
    (
        r"can't allocate memory|out of memory|Cannot allocate memory",
        f"not enough memory; lower {_SIZE} or --max-num-seqs, or serve a smaller model",
    ),
)


@dataclass(frozen=True, slots=True)
class StartFailure:
    """One error that ended the start of a process: its type, its message and the whole trace."""

    kind: str
    message: str
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> StartFailure:
        """The failure that an exception stands for."""
        return cls(type(error).__name__, str(error), "".join(traceback.format_exception(error)))


@contextmanager
def keep_start_failures(file: Path | None) -> Iterator[None]:
    """In a process of vLLM: leave the error of a failing start in `file` instead of the log (None: change nothing)."""
    if file is None:
        yield
        return
    keeper = _Keeper(file)
    for name in _REPORTS:
        logging.getLogger(name).addFilter(keeper)
    try:
        yield
    except Exception:
        if keeper.kept:
            # multiprocessing would print the trace that the file holds
            raise SystemExit(1) from None
        raise


def take_failures(file: Path) -> list[StartFailure]:
    """What the processes of a failed start left, in the order in which they failed; the file is removed."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    file.unlink(missing_ok=True)
    return [StartFailure(**json.loads(line)) for line in lines]


def explain(error: BaseException, failures: Sequence[StartFailure]) -> str:
    """One line: why the start failed, and what to change where that is known."""
    every = [*failures, StartFailure.of(error)]
    # the first process to fail is the cause of the others
    first = next((one for one in every if not one.message.startswith(_SECOND_HAND)), every[-1])
    text = " ".join(first.message.split())
    own = getattr(errors, first.kind, None)
    if isinstance(own, type) and issubclass(own, GuardError):
        return text
    for pattern, advice in _CAUSES:
        found = re.search(pattern, f"{first.kind}: {text}")
        if found:
            parts = found.groupdict()
            parts["fits"] = f" to {parts['fits']}" if parts.get("fits") else ""
            return advice.format(**parts)
    if text.startswith(_SECOND_HAND):
        codes = re.search(r"\{.*\}", text)
        return f"a process of the engine ended without a word, as when memory runs out {codes.group() if codes else ''}"
    return f"{first.kind}: {_first_sentence(first.message)}"


def write_traces(file: Path, error: BaseException, failures: Sequence[StartFailure]) -> None:
    """Write the traces of all processes to `file`, readable by its owner only."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.writelines(f"{one.trace}\n" for one in [*failures, StartFailure.of(error)])


class _Keeper(logging.Filter):
    """Takes the report of a failed start, and nothing else, out of the log and into a file."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self.kept = False

    def filter(self, record: logging.LogRecord) -> bool:
        """False for the report of a failed start, once it is in the file."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.msg != _REPORTS.get(record.name):
            return True
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(StartFailure.of(error))) + "\n")
        self.kept = True
        return False


def _first_sentence(message: str) -> str:
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    # pydantic puts the field's message behind a head line
    wanted = lines[1] if len(lines) > 1 and "validation error" in lines[0] else lines[0] if lines else "no message"
    return wanted[:300]
