"""What trials run on: a sandbox of their own, saved blocks, the Prefect server of all, and a template to fork from."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from prefect_mantik.runs import RunKey
from prefect_mantik.sandbox.process import SandboxProcess
from tests.faults import kinds, project

ROOT = Path(__file__).parents[2]
SWITCHES: dict[str, Any] = {
    "run_name": "suffix",
    "run_appears": "at-once",
    "close_dead_runs": True,
    "all_endpoints": False,
    "queue_delay": 0.2,
}


class Bench:
    """One worker's surroundings.

    Args:
        name: Tells the workers' saved blocks apart.
        sandbox: Its own.
        environment: Of processes that work with the Prefect server.
        api_url: Of the Prefect server.
        origin: Of the Prefect server.
        directory: Where trials leave what they have to say.
    """

    def __init__(
        self,
        name: str,
        sandbox: SandboxProcess,
        environment: Mapping[str, str],
        api_url: str,
        origin: str,
        directory: Path,
    ) -> None:
        self.name, self.sandbox, self.control = name, sandbox, sandbox.control
        self.directory = directory
        self._origin = origin
        self._prefect = httpx.Client(base_url=api_url, timeout=60, trust_env=False)
        self._flow = ""
        self.control.switch(**SWITCHES)
        self._mlflow_token = ""
        self._template = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.template"],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._template.stdout is not None
        if self._template.stdout.readline().strip() != b"ready":
            raise RuntimeError("The template of the victims did not start")
        project.publish(self._repository())

    @property
    def env(self) -> dict[str, str]:
        """The sandbox's variables."""
        return self.sandbox.env

    def start(self, order: Path) -> None:
        """Have a victim forked."""
        assert self._template.stdin is not None
        self._template.stdin.write(f"{order}\n".encode())
        self._template.stdin.flush()

    def job_name(self, kind: kinds.Kind) -> str:
        """The saved training job of a kind."""
        return f"{self.name}-{kind.slug}"

    def new_key(self, name: str) -> RunKey:
        """A key in a new flow run."""
        if not self._flow:
            self._flow = self._created("/flows/", {"name": f"faults-{self.name}"})
        root = self._created("/flow_runs/", {"flow_id": self._flow})
        return RunKey(name=name, origin=self._origin, root_flow_run_id=UUID(root))

    def _created(self, path: str, body: Mapping[str, Any]) -> str:
        return str(self.prefect(path, body)["id"])

    def prefect(self, path: str, body: Mapping[str, Any], *, also: Sequence[int] = ()) -> Any:
        """POST to Prefect's API, past its client; again while its database is locked.

        Args:
            path: Of the API.
            body: JSON.
            also: Refusals that are fine.
        """
        deadline = time.monotonic() + 30
        while True:
            answer = self._prefect.post(path, json=dict(body))
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        if answer.status_code in also:
            return None
        return answer.raise_for_status().json() if answer.content else None

    def mlflow(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask MLflow past our client."""
        for fresh in (False, True):
            if fresh or not self._mlflow_token:
                self._mlflow_token = self._platform_token()
            answer = httpx.post(
                f"{self.sandbox.tracking_uri.rstrip('/')}/api/2.0/mlflow/{path}",
                json=dict(body),
                headers={"Authorization": f"Bearer {self._mlflow_token}"},
                timeout=60,
                trust_env=False,
            )
            if answer.status_code != httpx.codes.UNAUTHORIZED:
                break
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def password(self) -> str:
        """The platform's password of the sandbox's first user, as it is now."""
        name = self.env["MANTIK_USERNAME"]
        return next(str(user["password"]) for user in self.control.accounts() if user["username"] == name)

    def _platform_token(self) -> str:
        body = {"username": self.env["MANTIK_USERNAME"], "password": self.password()}
        answer = httpx.post(f"{self.sandbox.url}/mantik/tokens/create", json=body, timeout=60, trust_env=False)
        made = answer.raise_for_status().json()
        return str(made.get("accessToken") or made.get("AccessToken") or made.get("access_token"))

    def _repository(self) -> Path:
        ids = self.env["MANTIK_PROJECT_ID"], self.env["MANTIK_CODE_REPOSITORY_ID"]
        answer = httpx.get(
            f"{self.sandbox.url}/projects/{ids[0]}/code/{ids[1]}",
            headers={"Authorization": f"Bearer {self._platform_token()}"},
            timeout=60,
            trust_env=False,
        )
        found = answer.raise_for_status().json()
        return Path(urlsplit(str((found.get("codeRepository") or found)["uri"])).path)

    def behave(self) -> None:
        """Have the sandbox behave again, and nothing run at it."""
        self.control.clear_faults()
        for place in ("alder", "birch", "cedar"):
            self.control.change_site(
                place,
                maintenance=False,
                refuse_logins=False,
                entitled=True,
                quota_full=False,
                queue_reason="",
                unhealthy=False,
                accounting_down=False,
            )
        self.control.switch(**SWITCHES)
        for job in self.control.jobs(live=True):
            self.control.end_job(job["id"])

    def close(self) -> None:
        """End the template, and with it what it forked."""
        assert self._template.stdin is not None
        self._template.stdin.close()
        try:
            self._template.wait(10)
        except subprocess.TimeoutExpired:
            self._template.kill()
        self._prefect.close()


_turn = threading.Lock()


def save_blocks(bench: Bench) -> None:
    """Save the blocks of a bench; one bench at a time, for Prefect's database has one writer."""
    with _turn:
        kinds.save_blocks(bench.sandbox, bench.name)


def until(met: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: It does not come to be so.
    """
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:.0f} s still not: {what}")
        time.sleep(0.02)
