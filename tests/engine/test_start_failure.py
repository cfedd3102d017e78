"""A start that fails says in one line what to change and keeps the traces; later errors stay in the log."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.engine.start_failure import StartFailure, explain, take_failures, write_traces
from tests.conftest import ROOT

SECOND_HAND = "WorkerProc initialization failed due to an exception in a background process. See stack trace."
CHILD = """
import multiprocessing, pathlib, sys
from guard.engine.lifetime import TiedProcess
if __name__ == "__main__":
    target = TiedProcess(("tests.engine.idle_process", "Idle", "fail"), pathlib.Path(sys.argv[1]))
    arguments = ("engine", "no\\nweights", sys.argv[2] == "start")
    child = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    child.start()
    child.join()
    print(child.exitcode)
"""


def explained(message: str, kind: str = "ValueError") -> str:
    return explain(RuntimeError("Engine core initialization failed. Failed core proc(s): {}"), [
        StartFailure(kind, message, "trace"), StartFailure("Exception", SECOND_HAND, "trace"),
    ])


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (
            "Available memory on node 0 (8.54/11.71 GiB) on kv cache allocation is less than requested memory for kv "
            "(9.94/10.78 GiB). Reduce CPU memory used by other processes.",
            ["9.94 GiB", "8.54 GiB", "VLLM_CPU_KVCACHE_SPACE", "--kv-cache-memory-bytes"],
        ),
        (
            "Available memory on node 0 (9.0/11.71 GiB) on startup is less than desired CPU memory utilization (0.92, "
            "10.78 GiB). On the CPU backend, the `--gpu-memory-utilization` flag controls the fraction",
            ["10.78 GiB", "9.0 GiB", "--gpu-memory-utilization"],
        ),
        (
            "To serve at least one request with the model's max seq len (8192), (0.5 GiB KV cache is needed, which is "
            "larger than the available KV cache memory (0.1 GiB). Based on the available memory, the estimated maximum "
            "model length is 1536. Try increasing `gpu_memory_utilization`",
            ["8192 tokens", "0.5 GiB", "0.1 GiB", "--max-model-len to 1536"],
        ),
        (
            "1 validation error for ModelConfig\n  Value error, User-specified max_model_len (9999) is greater than "
            "the derived max_model_len (max_position_embeddings=2048 or model_max_length=2048 in model's config.json).",
            ["--max-model-len 9999", "2048"],
        ),
        ("Model architectures ['Strange'] are not supported for now.", ["architecture 'Strange'"]),
        ("somebody/x is not a local folder and is not a valid model identifier listed on", ["model not found"]),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes", ["not enough memory"]),
        ("Cannot find any model weights with `/models/x`\nmore", ["ValueError: Cannot find any model weights"]),
    ],
)
def test_what_vllm_says_becomes_one_line_of_advice(message: str, wanted: list[str]) -> None:
    line = explained(message)
    assert all(part in line for part in wanted), line
    assert "\n" not in line and len(line) < 400


def test_the_guards_own_errors_are_said_as_they_are() -> None:
    assert explained("--enable-dbo has a value that cannot be used", "ConfigurationError").startswith("--enable-dbo")


def test_a_process_that_says_nothing_is_reported_with_its_exit_code() -> None:
    error = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'E': -9}")
    assert "{'E': -9}" in explain(error, [])


@given(kind=st.sampled_from(["ValueError", "OSError", "TicketError"]), message=st.text())
def test_any_message_gives_one_line(kind: str, message: str) -> None:
    line = explained(message, kind)
    assert len(line.splitlines()) <= 1


def fail(file: Path, when: str) -> subprocess.CompletedProcess[str]:
    program = file.with_name("program.py")
    program.write_text(CHILD, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(program), str(file), when], capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
    )


def test_a_failing_start_leaves_its_trace_in_the_file_and_not_in_the_log(tmp_path: Path) -> None:
    file = tmp_path / "failures"
    done = fail(file, "start")
    assert (done.stdout, done.stderr) == ("1\n", "engine\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (failure,) = take_failures(file)
    assert (failure.kind, failure.message) == ("ValueError", "no\nweights")
    assert "idle_process.py" in failure.trace
    assert take_failures(file) == []


def test_an_error_after_the_start_keeps_its_traceback_in_the_log(tmp_path: Path) -> None:
    file = tmp_path / "failures"
    done = fail(file, "later")
    assert "fatal error" in done.stderr and done.stderr.count("Traceback") == 2
    assert not file.exists()


def test_the_traces_of_all_processes_are_written_for_the_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "start_failure.log"
    write_traces(file, RuntimeError("Engine core"), [StartFailure("ValueError", "no weights", "the worker's trace")])
    text = file.read_text(encoding="utf-8")
    assert "the worker's trace" in text and "RuntimeError: Engine core" in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
