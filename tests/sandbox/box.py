"""A sandbox with the requests that tests make most."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from prefect_mantik.sandbox.process import SandboxProcess

FAKE_MLFLOW = Path(__file__).with_name("fake_mlflow.py")
DEFAULTS = {
    "token_lifetime": 3600,
    "refresh_lifetime": 86400,
    "run_name": "suffix",
    "run_appears": "at-once",
    "run_appears_after": 1,
    "close_dead_runs": True,
    "all_endpoints": False,
    "queue_delay": 0.1,
    "unicore_password_login": True,
    "unicore_session_lifetime": 28800,
    "unicore_job_lifetime": 2592000,
    "unicore_status_lag": 0.1,
    "unicore_list_lag": 0,
    "unicore_past_end": 30,
    "unicore_projects": "",
}
OPEN = {
    "maintenance": False,
    "message": "",
    "refuse_logins": False,
    "entitled": True,
    "quota_full": False,
    "queue_reason": "",
}


class Box:
    """A sandbox with the requests that tests make most."""

    def __init__(self, process: SandboxProcess) -> None:
        self.process = process
        self.env = process.env
        self.control = process.control
        self.http = httpx.Client(base_url=process.url, timeout=30, trust_env=False)
        self.runs_path = f"/projects/{self.env['MANTIK_PROJECT_ID']}/runs"
        self.login()

    def login(self) -> dict[str, str]:
        credentials = {"username": self.env["MANTIK_USERNAME"], "password": self.env["MANTIK_PASSWORD"]}
        answer = self.http.post("/mantik/tokens/create", json=credentials)
        assert answer.status_code == 201, answer.text
        self.http.headers["Authorization"] = f"Bearer {answer.json()['AccessToken']}"
        return answer.json()

    def config(self, site: str = "alder", **changes: Any) -> dict[str, Any]:
        url = self.env[f"MANTIK_SANDBOX_{site.upper()}_URL"]
        if site == "cedar":
            where: dict[str, Any] = {"Firecrest": {"ApiUrl": url, "TokenUrl": "http://unused", "Machine": site}}
        else:
            where = {"UnicoreApiUrl": url}
        return {**where, "Resources": {"Queue": "batch"}, **changes}

    def body(self, entry_point: str = "show", *, site: str = "alder", **changes: Any) -> dict[str, Any]:
        return {
            "name": "test",
            "experimentRepositoryId": self.env["MANTIK_EXPERIMENT_REPOSITORY_ID"],
            "codeRepositoryId": self.env["MANTIK_CODE_REPOSITORY_ID"],
            "branch": "main",
            "commit": None,
            "dataRepositoryId": None,
            "dataBranch": None,
            "dataCommit": None,
            "connectionId": self.env[f"MANTIK_CONNECTION_ID_{site.upper()}"],
            "computeBudgetAccount": "budget",
            "mlflowMlprojectFilePath": "MLproject",
            "entryPoint": entry_point,
            "mlflowParameters": {},
            "backendConfig": self.config(site),
            **changes,
        }

    def post(self, body: dict[str, Any]) -> httpx.Response:
        return self.http.post(self.runs_path, json=body)

    def submit(self, entry_point: str = "show", **changes: Any) -> str:
        answer = self.post(self.body(entry_point, **changes))
        assert answer.status_code == 201, answer.text
        return answer.json()["runId"]

    def job(self, run_id: str) -> dict[str, Any]:
        return next(job for job in self.control.jobs() if job["platformRunId"] == run_id)

    def wait_for(self, run_id: str, done: Callable[[dict[str, Any]], Any], timeout: float = 30) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while not done(job := self.job(run_id)):
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
        return job

    def ended(self, run_id: str, timeout: float = 30) -> dict[str, Any]:
        return self.wait_for(run_id, lambda job: not job["live"], timeout)

    def running(self, run_id: str) -> dict[str, Any]:
        return self.wait_for(run_id, lambda job: job["pid"])

    def mlflow_run(self, mlflow_run_id: str) -> dict[str, Any]:
        answer = self.http.get("/tracking/api/2.0/mlflow/runs/get", params={"run_id": mlflow_run_id})
        assert answer.status_code == 200, answer.text
        return answer.json()["run"]

    def settled(self, mlflow_run_id: str, status: str) -> bool:
        """Whether the MLflow run gets this status soon: the platform sets it right after the job's end."""
        deadline = time.monotonic() + 5
        while (found := self.mlflow_run(mlflow_run_id)["info"]["status"]) != status:
            assert time.monotonic() < deadline, f"{found}, not {status}"
            time.sleep(0.05)
        return True

    def mlflow_runs_named(self, part: str) -> list[dict[str, Any]]:
        answer = self.http.post(
            "/tracking/api/2.0/mlflow/runs/search",
            json={"experiment_ids": ["1"], "filter": f"attributes.run_name LIKE '%{part}%'"},
        )
        return answer.json().get("runs", [])


def log_of(job: dict[str, Any]) -> str:
    return (Path(job["directory"]) / "mantik.log").read_text()
