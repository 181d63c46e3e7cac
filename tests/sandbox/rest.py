"""UNICORE's REST API of one site with the requests that tests make most."""

from __future__ import annotations

import time
from typing import Any

import httpx

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

    def until(self, job: str, *statuses: str, timeout: float = 20) -> dict[str, Any]:
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
