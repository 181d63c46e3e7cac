"""Flows that benchmarks start as processes of their own: `python benchmarks/waiting_flows.py submit|wait|peer ...`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
from prefect import flow

from prefect_mantik import RunHandle, TrainingJob, submit_runs, wait_for_runs


@flow
def submit(job: str, runs: int, file: str) -> None:
    """Submit runs that last longer than the benchmark, and leave their handles in a file."""
    sleeper = TrainingJob.load(job)
    assert isinstance(sleeper, TrainingJob)
    sleeper = sleeper.model_copy(update={"entry_point": "sleep", "parameters": {"seconds": 3600}})
    handles = submit_runs({f"sleeper-{number}": sleeper for number in range(runs)})
    Path(file).write_text(json.dumps([handle.model_dump(mode="json") for handle in handles.values()]))


@flow
def wait(file: str) -> None:
    """Wait for the runs whose handles are in a file."""
    wait_for_runs([RunHandle.model_validate(item) for item in json.loads(Path(file).read_text())], on_failure="return")


def peer(polls: int) -> None:
    """The waiting loop of prefect-databricks, over so many polls without a pause, against a stub."""
    from prefect_databricks import DatabricksCredentials
    from prefect_databricks.flows import jobs_runs_wait_for_completion

    asked = 0

    def answer(_: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        state: dict[str, Any] = {"life_cycle_state": "RUNNING" if asked < polls else "TERMINATED"}
        return httpx.Response(200, json={"run_id": 1, "state": {**state, "state_message": ""}})

    class Stub(DatabricksCredentials):
        def get_client(self) -> httpx.AsyncClient:
            return httpx.AsyncClient(base_url="https://stub/api/", transport=httpx.MockTransport(answer))

    credentials = Stub(databricks_instance="stub", token="none")
    asyncio.run(
        jobs_runs_wait_for_completion(
            multi_task_jobs_runs_id=1,
            databricks_credentials=credentials,
            max_wait_seconds=10**6,
            poll_frequency_seconds=0,
        )
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["submit", job, runs, file]:
            submit(job, int(runs), file)
        case ["wait", file]:
            wait(file)
        case ["peer", polls]:
            peer(int(polls))
        case _:
            sys.exit(__doc__)
