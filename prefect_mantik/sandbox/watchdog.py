"""Kills what a sandbox left running, should the sandbox itself be killed.

Run as a script by `Watchdog`. It reads lines from its standard input, whose other end only the sandbox holds: `+ID`
and `-ID` add and remove a process group, `rm PATH` names a directory to remove. At end of file it does its work.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def kill_group(group: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Send a signal to a whole process group and tell whether anybody was there."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return False
    return True


def group_exists(group: int) -> bool:
    """Tell whether a process group has members that are not dead already."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    # In a container, the first process may take its time to bury the dead.
    stats = [_stat(path) for path in Path("/proc").glob("[0-9]*/stat")]
    return not stats or any(state not in "ZX" and member_of == group for state, member_of in stats)


def _stat(path: Path) -> tuple[str, int]:
    try:
        state, _, group = path.read_text(errors="replace").rpartition(")")[2].split()[:3]
    except (OSError, ValueError):  # gone in the meantime
        return "X", 0
    return state, int(group)


class Watchdog:
    """The sandbox's end of the watchdog process."""

    def __init__(self) -> None:
        # -I -S: nothing but the standard library is needed, and it starts in a few milliseconds.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        self._groups: set[int] = set()

    def add(self, group: int) -> None:
        """Watch over a process group."""
        self._groups.add(group)
        self._tell(f"+{group}")

    def remove(self, group: int) -> None:
        """Forget a process group that has ended."""
        self._groups.discard(group)
        self._tell(f"-{group}")

    def remove_at_end(self, directory: Path) -> None:
        """Have a directory removed at the end, however the end comes."""
        self._tell(f"rm {directory}")

    def close(self) -> None:
        """Let the watchdog do its work now, and wait for it."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait(timeout=10)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 (opened above)
        print(line, file=self._process.stdin, flush=True)


def _watch() -> None:
    groups: set[int] = set()
    directories: list[str] = []
    for line in sys.stdin:
        text = line.rstrip("\n")
        if text.startswith("+"):
            groups.add(int(text[1:]))
        elif text.startswith("-"):
            groups.discard(int(text[1:]))
        else:
            directories.append(text.removeprefix("rm "))
    for group in groups:
        kill_group(group)
    for directory in directories:
        deadline = time.monotonic() + 2
        while os.path.exists(directory) and time.monotonic() < deadline:  # what was just killed may still be writing
            shutil.rmtree(directory, ignore_errors=True)
            time.sleep(0.02)


if __name__ == "__main__":
    _watch()
