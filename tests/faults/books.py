"""What a site and MLflow really have under a key, read past our client."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prefect_mantik.runs import RunKey
from prefect_mantik.sites.tracked import REFUSED_TAG
from tests.faults.bench import Bench

TOGETHER = 5.0
"""Seconds beyond `settle` that two jobs of a key may be live together: the look after the POST sees both by then, and
cancels the younger; a sandbox's job that is cancelled has 2 s to end."""

_GRACE = 8.0
_OPEN = ("RUNNING", "SCHEDULED")


@dataclass(frozen=True)
class Books:
    """Jobs and MLflow runs of a key.

    Attributes:
        jobs: The site's jobs, oldest first.
        mlflow: The MLflow runs, but for those of submits that the site refused: there was no attempt.
        refused: How many of these there are.
    """

    jobs: list[dict[str, Any]]
    mlflow: list[dict[str, Any]] = field(repr=False)
    refused: int = 0

    @property
    def live(self) -> list[dict[str, Any]]:
        """Jobs that have not ended."""
        return [job for job in self.jobs if job["live"]]

    @property
    def open_runs(self) -> list[str]:
        """MLflow runs that nobody closed."""
        return [run["info"]["run_id"] for run in self.mlflow if run["info"]["status"] in _OPEN]

    def overlapping(self, settle: float) -> int:
        """Pairs of jobs that were live together for longer than the look after the POST may take."""
        spans = [(_moment(job["submitted"]), _moment(job["ended"])) for job in self.jobs]
        pairs = itertools.combinations(spans, 2)
        return sum(min(one[1], other[1]) - max(one[0], other[0]) > settle + TOGETHER for one, other in pairs)

    def describe(self) -> str:
        """For whoever looks into a failed trial."""
        jobs = [(job["site"], job["number"], job["state"], job["submitted"], job["ended"]) for job in self.jobs]
        runs = [(run["info"]["run_id"], run["info"]["run_name"], run["info"]["status"]) for run in self.mlflow]
        return f"jobs {jobs}; MLflow runs {runs}; refused ones {self.refused}"


def read(bench: Bench, key: RunKey) -> Books:
    """What is there under a key, now."""
    found = [job for job in bench.control.jobs() if key.site_key in f"{job['runKey']} {job['jobName']}"]
    runs = [run for run in _mlflow_runs(bench) if key.site_key in _name(run)]
    tracked = [run for run in runs if not _has_tag(run, REFUSED_TAG)]
    return Books(found, tracked, len(runs) - len(tracked))


def settled(bench: Bench, key: RunKey, *, closed: bool = True) -> Books:
    """What is there when all has come to rest: nothing live, nothing open; else what there is after a while."""
    deadline = time.monotonic() + _GRACE
    while True:
        found = read(bench, key)
        if time.monotonic() > deadline or not (found.live or (closed and found.open_runs)):
            return found
        time.sleep(0.1)


def _mlflow_runs(bench: Bench) -> list[dict[str, Any]]:
    experiments = bench.mlflow("experiments/search", {"max_results": 100}).get("experiments", [])
    body = {
        "experiment_ids": [item["experiment_id"] for item in experiments],
        "run_view_type": "ALL",
        "max_results": 200,  # newest first, and a trial makes few
        "order_by": ["attributes.start_time DESC"],
    }
    runs: list[dict[str, Any]] = bench.mlflow("runs/search", body).get("runs", [])
    return runs


def _name(run: dict[str, Any]) -> str:
    return str(run["info"].get("run_name", ""))


def _has_tag(run: dict[str, Any], name: str) -> bool:
    return any(tag["key"] == name for tag in run["data"].get("tags", []))


def _moment(told: str | None) -> float:
    return time.time() if told is None else datetime.fromisoformat(told).timestamp()
