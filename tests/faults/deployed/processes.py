"""Processes of their own: a Prefect server that can be killed and started again, workers, flows started by hand."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx

from prefect_mantik.sandbox.watchdog import Watchdog

ROOT = Path(__file__).parents[3]
HEARTBEAT = 30
"""Seconds between two heartbeats of a flow run: Prefect allows no fewer."""

_START_TIMEOUT = 150.0
_FOREIGN = ("PREFECT_", "MANTIK_", "MLFLOW_")


class Children:
    """Everything that was started, each in a process group of its own. It ends with us, also if we are killed.

    Args:
        directory: For logs, and for the homes of servers and workers.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.marks = directory / "marks"
        self.marks.mkdir(parents=True, exist_ok=True)
        self._watchdog = Watchdog()
        self._watchdog.remove_at_end(directory)
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: str, api_url: str = "", **environment: str) -> subprocess.Popen[bytes]:
        """Start `python -m ...`.

        Args:
            name: Of its log, and of its home: what a host keeps on its disk.
            arguments: After `python -m`.
            api_url: Of the Prefect server that it works with.
            environment: More variables.
        """
        home = self.directory / f"home-{name}"
        home.mkdir(exist_ok=True)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        with (self.directory / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env={
                    **inherited,
                    **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
                    "PYTHONPATH": str(ROOT),
                    "PYTHONUNBUFFERED": "1",
                    "PREFECT_HOME": str(home),
                    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT),
                    "FAULTS_MARKS": str(self.marks),
                    **({"PREFECT_API_URL": api_url} if api_url else {}),
                    **environment,
                },
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._watchdog.add(process.pid)
        self._started.append(process)
        return process

    def run(self, name: str, *arguments: str, api_url: str = "", timeout: float = 120, **environment: str) -> str:
        """Start one, wait until it has ended well, and give its output."""
        log = self.directory / f"{name}.log"
        before = log.stat().st_size if log.exists() else 0
        process = self.start(name, *arguments, api_url=api_url, **environment)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            kill(process)
            code = -1
        output = log.read_bytes()[before:].decode(errors="replace")
        if code:
            raise RuntimeError(f"{' '.join(arguments)} ended with {code}:\n{output[-4000:]}")
        return output

    def close(self) -> None:
        """End everything."""
        # Flow processes of a worker are in groups of their own: without their directory of marks they end themselves.
        shutil.rmtree(self.marks, ignore_errors=True)
        for process in self._started:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 5
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            kill(process)
        self._watchdog.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process and all its descendants, as the death of a host does."""
    family = _descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _descendants(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


class Server:
    """A Prefect server with a SQLite database of its own.

    Args:
        children: Who starts it.
        name: Its name here.
        settings: More settings of Prefect, as variables.
    """

    def __init__(self, children: Children, name: str, **settings: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.name, self._children, self._settings = name, children, settings
        self.api_url = f"http://127.0.0.1:{self._port}/api"
        self.database = children.directory / f"{name}.db"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, at the same port and with the same database each time."""
        self._process = self._children.start(
            self.name,
            "prefect",
            "server",
            "start",
            PREFECT_API_DATABASE_CONNECTION_URL=f"sqlite+aiosqlite:///{self.database}",
            PREFECT_SERVER_API_HOST="127.0.0.1",
            PREFECT_SERVER_API_PORT=str(self._port),
            PREFECT_UI_ENABLED="false",
            **self._settings,
        )

    def wait_ready(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"the Prefect server {self.name} ended, see {self.name}.log")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.api_url}/health", timeout=5, trust_env=False).is_success:
                    return
            time.sleep(0.2)
        raise TimeoutError(f"the Prefect server {self.name} did not answer within {_START_TIMEOUT:.0f} s")

    def kill(self) -> None:
        """SIGKILL it."""
        assert self._process is not None
        kill(self._process)

    def keep_copy(self) -> Path:
        """Copy the database as a backup does, while the server runs."""
        copy = self.database.with_suffix(".backup")
        with (
            contextlib.closing(sqlite3.connect(self.database)) as live,
            contextlib.closing(sqlite3.connect(copy)) as to,
        ):
            live.backup(to)
        return copy

    def go_back_to(self, copy: Path) -> None:
        """Put a copy in the place of the database. The server must be dead."""
        for suffix in ("-wal", "-shm"):
            self.database.with_name(self.database.name + suffix).unlink(missing_ok=True)
        shutil.copy(copy, self.database)

    def worker(self, name: str, pool: str) -> subprocess.Popen[bytes]:
        """Start a process worker."""
        return self._children.start(
            name,
            "prefect",
            "worker",
            "start",
            "--pool",
            pool,
            "--name",
            name,
            api_url=self.api_url,
            PREFECT_WORKER_QUERY_SECONDS="2",
        )
