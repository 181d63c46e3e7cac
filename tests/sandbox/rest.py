"""The REST APIs of the sites with the requests that tests make most."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from firecrest import ClientCredentialsAuth
from firecrest.v2 import Firecrest

from .box import Box

JOBS = "/{site}/rest/core/jobs"
OVER = ("SUCCESSFUL", "FAILED")
OCTETS = {"Accept": "application/octet-stream"}
UPLOAD = {"Content-Type": "application/octet-stream"}


class Rest:
    """One site, as its first user sees it."""

    def __init__(self, box: Box, site: str) -> None:
        self.box = box
        self.control = box.control
        self.login = (box.env["MANTIK_UNICORE_USERNAME"], box.env["MANTIK_UNICORE_PASSWORD"])
        self.url = box.env[f"MANTIK_SANDBOX_{site.upper()}_URL"]
        self.http = self.client(auth=self.login)

    def __enter__(self) -> Rest:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def client(self, **options: Any) -> httpx.Client:
        headers = {"Accept": "application/json", **options.pop("headers", {})}
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, headers=headers, **options)

    def post(self, description: dict[str, Any] | None = None, **keys: Any) -> httpx.Response:
        return self.http.post("/jobs", json={**(description or {}), **keys})

    def submit(self, executable: str = "true", **keys: Any) -> str:
        answer = self.post({"Executable": executable}, **keys)
        assert answer.status_code == 201, answer.text
        return answer.headers["Location"]

    def get(self, url: str, **query: str) -> Any:
        answer = self.http.get(url, params=query)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.json()

    def until(self, job: str, *statuses: str, timeout: float = 20) -> Any:
        deadline = time.monotonic() + timeout
        while (found := self.get(job))["status"] not in statuses:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return found

    def over(self, job: str) -> dict[str, Any]:
        return self.until(job, *OVER)

    def run(self, executable: str, **keys: Any) -> dict[str, Any]:
        """Run a job to its end and give its properties with `stdout` and `stderr`."""
        job = self.submit(executable, **keys)
        done = self.over(job)
        return {**done, "stdout": self.text(job, "stdout"), "stderr": self.text(job, "stderr")}

    def files(self, job: str) -> str:
        return f"{job.replace('/jobs/', '/storages/')}-uspace/files"

    def ready(self, job: str) -> str:
        """Wait until the job has its directory, and give the URL of its files."""
        storage = self.files(job).removesuffix("/files")
        deadline = time.monotonic() + 10
        while self.get(storage)["resourceStatus"] != "READY":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return f"{storage}/files"

    def text(self, job: str, name: str) -> str | None:
        answer = self.http.get(f"{self.files(job)}/{name}", headers=OCTETS)
        return answer.text if answer.status_code == 200 else None

    def actions(self, job: str, action: str) -> httpx.Response:
        return self.http.post(f"{job}/actions/{action}", json={})


class Cedar:
    """FirecREST's API of cedar, as its first user sees it."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.control = box.control
        self.url = box.env["MANTIK_SANDBOX_CEDAR_URL"]
        self.token_url = box.env["MANTIK_SANDBOX_CEDAR_TOKEN_URL"]
        self.login = box.env["MANTIK_FIRECREST_CLIENT_ID"]
        self.secret = box.env["MANTIK_FIRECREST_CLIENT_SECRET"]
        self.http = self.client(self.control.firecrest_token(self.login))
        self.firecrest = Firecrest(
            self.url, ClientCredentialsAuth(self.login, self.secret, self.token_url, min_token_validity=40)
        )
        self.home = f"{self.http.get('/status/systems').json()['systems'][0]['fileSystems'][0]['path']}/{self.login}"

    def __enter__(self) -> Cedar:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.firecrest.close_session()

    def client(self, token: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, headers=headers)

    def other(self) -> httpx.Client:
        """The same for the second user."""
        return self.client(self.control.firecrest_token("sandbox-2-at-cedar"))

    def jobs(self, system: str = "cedar") -> str:
        return f"/compute/{system}/jobs"

    def post(self, script: str | None, system: str = "cedar", **fields: Any) -> httpx.Response:
        body = {"workingDirectory": self.home, **({} if script is None else {"script": script}), **fields}
        return self.http.post(self.jobs(system), json={"job": body})

    def submit(self, script: str, system: str = "cedar", **fields: Any) -> str:
        answer = self.post(script, system, **fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["jobId"])

    def refused(self, script: str | None, system: str = "cedar", **fields: Any) -> str:
        """Give what a submission is refused with."""
        answer = self.post(script, system, **fields)
        assert answer.status_code == 500, (answer.status_code, answer.text)
        return str(answer.json()["message"])

    def get(self, job: str, system: str = "cedar") -> Any:
        """Give the job, or the first entry of an array."""
        return self.entries(job, system)[0]

    def entries(self, job: str, system: str = "cedar") -> list[Any]:
        answer = self.http.get(f"{self.jobs(system)}/{job}")
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return list(answer.json()["jobs"])

    def listed(self, system: str = "cedar", **query: Any) -> list[str]:
        answer = self.http.get(self.jobs(system), params=query)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return [job["jobId"] for job in answer.json()["jobs"]]

    def when(self, job: str, done: Callable[[dict[str, Any]], Any], system: str = "cedar") -> Any:
        deadline = time.monotonic() + 20
        while not done((found := self.get(job, system))["status"]):
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return found

    def until(self, job: str, state: str, system: str = "cedar") -> Any:
        return self.when(job, lambda status: status["state"] == state, system)

    def over(self, job: str, system: str = "cedar") -> Any:
        return self.when(job, lambda status: status["state"] not in ("PENDING", "RUNNING"), system)

    def all_over(self, job: str) -> list[Any]:
        """Wait until all tasks of an array have ended."""
        deadline = time.monotonic() + 20
        found = self.entries(job)
        while any(entry["status"]["state"] in ("PENDING", "RUNNING") for entry in found):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
            found = self.entries(job)
        return found

    def run(self, script: str, system: str = "cedar", **fields: Any) -> tuple[Any, str]:
        """Run a job to its end and give it with its output."""
        job = self.submit(script, system, **fields)
        done = self.over(job, system)
        return done, Path(self.home, f"slurm-{job}.out").read_text()

    def inside(self, job: str) -> str:
        """Give the id by which the control API knows a job."""
        return self.control.job_of(job)
