"""Runs of code that a test writes, and what is left of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect_mantik.loop import acall
from prefect_mantik.runs import RunHandle, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.tracking import TrackedRun
from prefect_mantik.waiting.waits import wait_until_ended
from tests.contract.conftest import Road
from tests.sandbox_jobs import new_key

LOGS = """\
import json, os, urllib.request
def call(path, **body):
    request = urllib.request.Request(
        os.environ["MLFLOW_TRACKING_URI"].rstrip("/") + "/api/2.0/mlflow/runs/" + path,
        json.dumps({"run_id": os.environ["MLFLOW_RUN_ID"], **body}).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"]},
    )
    urllib.request.urlopen(request).read()
call("log-metric", key="loss", value=0.5, timestamp=1, step=0)
call("update", status="FINISHED")
"""
"""A job that logs with nothing but the standard library: importing mlflow takes longer than a token may live."""


def project_in(directory: Path, **commands: str) -> str:
    """A directory with an MLproject whose entry points run commands."""
    entries = "\n".join(f"  {name}:\n    command: {json.dumps(command)}" for name, command in commands.items())
    (directory / "MLproject").write_text(f"name: made-by-a-test\nentry_points:\n{entries}\n")
    return str(directory)


async def run(road: Road, directory: str, entry_point: str = "main", **fields: Any) -> RunHandle:
    """Submit code of a directory."""
    parameters = fields.pop("parameters", {})
    job = road.job(directory=directory, entry_point=entry_point, **fields)
    return await road.submit(new_key(), job.spec(parameters), site=job.site.open(job.project))


async def waited(road: Road, handle: RunHandle, opened: Site | None = None) -> RunStatus:
    """Wait as users do, which helps a run along and closes its MLflow run."""
    site = opened or road.open()

    async def same(_: RunHandle) -> Site:
        return site

    return (await acall(wait_until_ended, {handle: site}, reopen=same, timeout=60))[handle]


async def content(road: Road, handle: RunHandle, path: str) -> bytes:
    return await acall(road.open().store(handle).read, path)


async def log_of(road: Road, handle: RunHandle) -> str:
    return (await acall(road.open().read_log, handle))[0].decode()


async def tracked(road: Road, handle: RunHandle) -> TrackedRun:
    tracking = road.job().project.credentials.tracking_client()
    found = await acall(tracking.run, str(handle.mlflow_run_id))
    assert found is not None
    return found


def short_tokens(road: Road, lifetime: float) -> None:
    """From now on, and for those who have one already."""
    road.sandbox.control.switch(token_lifetime=lifetime)
    road.sandbox.control.expire_tokens()


def uuid_of(road: Road, handle: RunHandle) -> str:
    """What the sandbox's books call a job of its FirecREST site."""
    [job] = [job for job in road.sandbox.control.jobs() if str(job["number"]) == handle.remote_id]
    return str(job["id"])
