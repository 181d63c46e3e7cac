"""A real MLflow server as a child process, reachable by a socket file that only this user may open."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from prefect_mantik.sandbox.errors import SandboxError
from prefect_mantik.sandbox.groups import end_group
from prefect_mantik.sandbox.surroundings import base_environment
from prefect_mantik.sandbox.watchdog import Watchdog

ENDED = frozenset({"FINISHED", "FAILED", "KILLED"})
_READY_WITHIN = 120.0


class MlflowServer:
    """The MLflow server and the platform's own access to it, which needs no token."""

    def __init__(self, directory: Path, watchdog: Watchdog, command: str = "") -> None:
        self._directory = directory
        self._watchdog = watchdog
        self._command = shlex.split(command) or [sys.executable, "-m", "mlflow"]
        self._own = not command
        self._process: asyncio.subprocess.Process | None = None
        # Not in the state directory: the path of a socket may have a hundred characters at most.
        self._sockets = Path(tempfile.mkdtemp(prefix="mlflow-"))
        self._socket = self._sockets / "http"
        watchdog.remove_at_end(self._sockets)
        self.artifacts = directory / "artifacts"
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self._socket), limits=httpx.Limits(max_connections=None)),
            base_url="http://localhost",
            timeout=httpx.Timeout(None, connect=10),
            trust_env=False,
        )

    async def start(self) -> None:
        """Start the server; `wait_ready` tells when it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        program, environment = self._program()
        with (self._directory / "server.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                program,
                *self._command[1:],
                "server",
                "--workers=1",
                f"--backend-store-uri=sqlite:///{self._directory / 'mlflow.db'}",
                f"--artifacts-destination={self.artifacts}",
                *await self._listen_options(program, environment),
                cwd=self._directory,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._watchdog.add(self._process.pid)

    def _program(self) -> tuple[str, dict[str, str]]:
        program = shutil.which(self._command[0]) or self._command[0]
        environment = base_environment(self._directory)
        # MLflow 2 finds gunicorn on its PATH.
        environment["PATH"] = f"{Path(program).absolute().parent}:{environment['PATH']}"
        return program, environment | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
        }

    async def _listen_options(self, program: str, environment: Mapping[str, str]) -> list[str]:
        if self._own:  # asking the program takes seconds
            version = importlib.metadata.version("mlflow")
        else:
            asked = await asyncio.create_subprocess_exec(
                program, *self._command[1:], "--version", env=environment, stdout=asyncio.subprocess.PIPE
            )
            output, _ = await asked.communicate()
            version = output.decode().strip().rpartition(" ")[2]
        if int(version.partition(".")[0] or 0) < 3:
            # As host and port: gunicorn would listen where its own options say and on MLflow's TCP port as well.
            self._socket.symlink_to(f"{self._socket}:1")
            return [f"--host=unix:{self._socket}", "--port=1"]
        return [f"--uvicorn-opts=--uds {self._socket}"]

    async def wait_ready(self) -> None:
        """Wait until the server answers."""
        if self._process is None:
            raise SandboxError("MLflow was not started")
        deadline = time.monotonic() + _READY_WITHIN
        while time.monotonic() < deadline and self._process.returncode is None:
            try:
                if (await self.client.get("/health")).is_success:
                    return
            except httpx.TransportError:  # not listening yet
                await asyncio.sleep(0.1)
        tail = (self._directory / "server.log").read_text(errors="replace")[-2000:]
        raise SandboxError(f"MLflow did not become ready. Its last words:\n{tail}")

    async def stop(self) -> None:
        """End the server and all its workers."""
        await self.client.aclose()
        if self._process is not None:
            await end_group(self._process.pid, 1.5)
            await self._process.wait()
            self._watchdog.remove(self._process.pid)
        shutil.rmtree(self._sockets, ignore_errors=True)

    async def experiment(self, name: str) -> str:
        """Make an experiment, or find it again in a kept state directory, and give its id."""
        answer = await self.client.post("/api/2.0/mlflow/experiments/create", json={"name": name})
        if answer.is_success:
            return str(answer.json()["experiment_id"])
        found = await self._call("GET", "experiments/get-by-name", params={"experiment_name": name})
        return str(found["experiment"]["experiment_id"])

    async def create_run(self, experiment_id: str, name: str, user: str, tags: Mapping[str, str]) -> str:
        """Make a run, not started yet, and give its id.

        Args:
            experiment_id: The MLflow experiment's id.
            name: The run's name.
            user: Whose run it is.
            tags: Tags of the run.
        """
        body = {
            "experiment_id": experiment_id,
            "run_name": name,
            "user_id": user,
            "start_time": int(time.time() * 1000),
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        run_id = str((await self._call("POST", "runs/create", json=body))["run"]["info"]["run_id"])
        await self.set_status(run_id, "SCHEDULED")
        return run_id

    async def get_status(self, run_id: str) -> str:
        """Give a run's status."""
        run = await self._call("GET", "runs/get", params={"run_id": run_id})
        return str(run["run"]["info"]["status"])

    async def set_status(self, run_id: str, status: str) -> None:
        """Set a run's status, and its end time if that status is an end."""
        body: dict[str, Any] = {"run_id": run_id, "status": status}
        if status in ENDED:
            body["end_time"] = int(time.time() * 1000)
        await self._call("POST", "runs/update", json=body)

    async def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        answer = await self.client.request(method, f"/api/2.0/mlflow/{path}", **request)
        answer.raise_for_status()
        content: dict[str, Any] = answer.json()
        return content


def artifact_directory(server: MlflowServer, experiment_id: str, run_id: str) -> Path:
    """Tell where the server keeps a run's artifacts."""
    return server.artifacts / os.path.basename(experiment_id) / os.path.basename(run_id) / "artifacts"
