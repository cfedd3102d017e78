"""Waits for a process as long as it makes progress, and ends it together with everything that it started.

How long a start takes depends on the machine and on what else runs there; whether anything happens does not. Progress
is a log that grows, a report that changes, or processor time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import psutil

LOG_LINES = 40
# processes of a family that were killed are gone within this time, on a busy machine too
KILL_S = 30.0


class GaveUpError(Exception):
    """A process died, or did nothing any more; the message says what it was doing."""


class Probe(NamedTuple):
    """What one look at a process found: whether it has come as far as wanted, and what it says of itself."""

    ready: bool
    report: str = ""


@dataclass(frozen=True)
class Patience:
    """How long to wait: `quiet_s` without any progress, `ceiling_s` in all, looking every `pause_s`.

    Processor time counts as progress above `busy_share` of one core since progress was last seen: a server that has
    nothing to do wakes up now and then, and a busy one on a crowded machine gets little.
    """

    quiet_s: float = 240.0
    ceiling_s: float = 2400.0
    busy_share: float = 0.01
    pause_s: float = 0.5


class Family:
    """A process and all that it started, those included whose parent has ended or that began a session of their own."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._members = {psutil.Process(pid)}

    def living(self) -> list[psutil.Process]:
        """Members that run now, the first one included."""
        found = {child for member in self._members for child in _children(member)}
        self._members = {member for member in self._members | found | self._in_session() if _runs(member)}
        return sorted(self._members, key=lambda member: member.pid)

    def kill(self) -> list[str]:
        """End whatever still runs; what it was, by name."""
        killed = []
        # a process may start another while it is being ended
        while living := self.living():
            killed += [_title(member) for member in living]
            for member in living:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(living, timeout=KILL_S)
        return killed

    def _in_session(self) -> set[psutil.Process]:
        found = set()
        for pid in psutil.pids():
            with suppress(OSError, psutil.NoSuchProcess):
                if os.getsid(pid) == self._pid:
                    found.add(psutil.Process(pid))
        return found


class Watched:
    """A command that runs in a session of its own, its output in `log_file`; a context that leaves nothing behind."""

    def __init__(
        self, command: Sequence[str], log_file: Path, *, cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log_file = log_file
        with log_file.open("wb") as log:
            # a session of its own: an interrupt from the keyboard reaches the tests, which then end the family in order
            self.process = subprocess.Popen(
                command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._family = Family(self.process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait_until(self, look: Callable[[], Probe], what: str, patience: Patience | None = None) -> None:
        """Return once `look` finds it ready. Raises GaveUpError when the process ends before, or makes no progress."""
        patience = patience or Patience()
        pace = _Pace(self._family, self.log_file, patience)
        while True:
            # asked for first: a process that ends after the look has still been looked at
            exit_code = self.process.poll()
            probe = look()
            if probe.ready:
                return
            if exit_code is not None:
                raise GaveUpError(f"{what}: it ended with exit code {exit_code}\n{self._log_end()}")
            if (reason := pace.gave_up(probe.report)) is not None:
                raise GaveUpError(f"{what}: {reason}\n{pace.activity()}\n{self._log_end()}")
            time.sleep(patience.pause_s)

    def wait_for_end(self, what: str, patience: Patience | None = None) -> int:
        """The exit code, once it has ended by itself. Raises GaveUpError when it makes no progress."""
        self.wait_until(lambda: Probe(self.process.poll() is not None), what, patience)
        return self.process.wait()

    def stop(self, grace_s: float) -> list[str]:
        """Ask it to end with SIGTERM and wait; whatever runs after `grace_s` is killed, and named in the answer."""
        end_s = time.monotonic() + grace_s
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        while self._family.living() and time.monotonic() < end_s:
            self.process.poll()
            time.sleep(0.1)
        return self.kill()

    def kill(self) -> list[str]:
        """End it and everything it started at once; what still ran, by name."""
        killed = self._family.kill()
        self.process.wait()
        return killed

    def _log_end(self) -> str:
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join(["last lines of its log:", *lines])


class _Pace:
    """When something last happened, and what."""

    def __init__(self, family: Family, log_file: Path, patience: Patience) -> None:
        self._family, self._log_file, self._patience = family, log_file, patience
        self._start_s = self._progress_s = time.monotonic()
        self._seen: tuple[int, str] = (0, "")
        self._spent_s: dict[psutil.Process, float] = {}
        self._at_progress_s: dict[psutil.Process, float] = {}

    def gave_up(self, report: str) -> str | None:
        """Take note of what has happened since the last call; why to give up, or None."""
        now_s = time.monotonic()
        self._spent_s.update((member, _processor_s(member)) for member in self._family.living())
        seen = (self._log_file.stat().st_size, report)
        if seen != self._seen or self._busy_s() > self._patience.busy_share * self._patience.quiet_s:
            self._seen, self._progress_s, self._at_progress_s = seen, now_s, dict(self._spent_s)
        if now_s - self._progress_s > self._patience.quiet_s:
            return (
                f"no progress for {self._patience.quiet_s:.0f} s: no new line in the log, the same report, "
                f"{self._busy_s():.1f} s of processor time"
            )
        if now_s - self._start_s > self._patience.ceiling_s:
            return f"not within {self._patience.ceiling_s:.0f} s, although it was still doing something"
        return None

    def activity(self) -> str:
        """Its last report, and its processes with what they have done since the last progress."""
        lines = [f"last report: {self._seen[1] or 'none'}", "processes:"]
        for member in self._family.living():
            with suppress(psutil.NoSuchProcess):
                total_s = _processor_s(member)
                recent_s = total_s - self._at_progress_s.get(member, 0.0)
                lines.append(
                    f"  {member.pid} {_title(member)}: {member.status()}, {total_s:.1f} s of processor time, "
                    f"{recent_s:.1f} s of it since the last progress"
                )
        return "\n".join(lines)

    def _busy_s(self) -> float:
        return sum(max(0.0, spent - self._at_progress_s.get(key, 0.0)) for key, spent in self._spent_s.items())


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _processor_s(process: psutil.Process) -> float:
    """Seconds that a process has computed, those of children that have ended included."""
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.NoSuchProcess:
        return 0.0


def _title(process: psutil.Process) -> str:
    """The command line, which vLLM's processes replace by a name; one line of 120 characters."""
    try:
        return " ".join(" ".join(process.cmdline()).split())[:120] or str(process.name())
    except psutil.Error:
        return f"process {process.pid}"

