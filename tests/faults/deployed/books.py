"""What really happened at the sites: the books of the sandbox and of MLflow, past our code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from itertools import combinations
from typing import Any

import httpx

from prefect_mantik.sandbox.process import SandboxProcess

SITE_KEY = re.compile(r"pm-[a-z2-7]{8}-[a-z2-7]{26}-[a-z2-7]{16}")
CLEARLY = 1.5
"""Seconds of two live jobs at once that are more than the inexactness of the books."""


class Books:
    """Jobs, requests and MLflow runs of a sandbox.

    Args:
        sandbox: The sandbox.
    """

    def __init__(self, sandbox: SandboxProcess) -> None:
        self._control = sandbox.control
        self._login = {"username": sandbox.env["MANTIK_USERNAME"], "password": sandbox.env["MANTIK_PASSWORD"]}
        self._url, self._tracking = sandbox.url, f"{sandbox.tracking_uri.rstrip('/')}/api/2.0/mlflow"

    def jobs(self, marker: str) -> list[dict[str, Any]]:
        """All jobs in whose names or keys a marker is, oldest first."""
        return [job for job in self._control.jobs() if any(marker in name for name in _names(job))]

    def cancelled_at(self, job: dict[str, Any]) -> float | None:
        """When the first request came that the site took, and that ended the job."""
        ways = {
            ("POST", f"/jobs/{job['id']}/actions/abort"),
            ("DELETE", f"/jobs/{job['id']}"),
            ("DELETE", f"/jobs/{job['number']}"),
        }
        moments = [
            seconds(seen["at"])
            for seen in self._control.request_log()
            if 200 <= seen["status"] < 300
            and any(seen["method"] == method and seen["path"].endswith(path) for method, path in ways)
            and f"/{job['site']}/" in seen["path"].lower()
        ]
        return min(moments, default=None)

    def mlflow_runs(self, marker: str) -> list[dict[str, Any]]:
        """The `info` of all MLflow runs in whose names a marker is."""
        with httpx.Client(timeout=30, trust_env=False) as client:
            answer = client.post(f"{self._url}/mantik/tokens/create", json=self._login).raise_for_status().json()
            client.headers["Authorization"] = f"Bearer {answer['AccessToken']}"
            listed = client.post(f"{self._tracking}/experiments/search", json={"max_results": 100}).raise_for_status()
            body = {
                "experiment_ids": [each["experiment_id"] for each in listed.json().get("experiments", [])],
                "filter": f"attributes.run_name LIKE '%{marker}%'",
                "max_results": 100,
            }
            found = client.post(f"{self._tracking}/runs/search", json=body).raise_for_status().json()
        return [run["info"] for run in found.get("runs", [])]


def key_of(job: dict[str, Any]) -> str:
    """The site key of a job, or its own name where it has none."""
    found = next((match for name in _names(job) if (match := SITE_KEY.search(name))), None)
    return found.group() if found else str(job["jobName"])


def overlapping(jobs: Sequence[dict[str, Any]]) -> int:
    """Pairs of jobs of one key that were live together."""
    pairs = [(one, other) for one, other in combinations(jobs, 2) if key_of(one) == key_of(other)]
    return sum(
        min(_end(one), _end(other)) - max(seconds(one["submitted"]), seconds(other["submitted"])) > CLEARLY
        for one, other in pairs
    )


def seconds(moment: str) -> float:
    """A point in time of an API, as seconds since the epoch."""
    return datetime.fromisoformat(moment).timestamp()


def _end(job: dict[str, Any]) -> float:
    return seconds(job["ended"]) if job["ended"] else float("inf")


def _names(job: dict[str, Any]) -> list[str]:
    return [str(job[field] or "") for field in ("runKey", "jobName", "name")]
