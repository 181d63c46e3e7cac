"""Flows that wait without a process, as a deployment runs them. Each time one begins it leaves a line in a file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from prefect import flow, serve
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.runtime import flow_run

from prefect_mantik import TrainingJob, asubmit_run, await_for_run, submit_run, suspending, wait_for_run
from prefect_mantik.errors import WaitTimeout

SITE = "birch"


def leave(mark: str, **more: Any) -> int:
    """Leave a line for the test; give how many there are now."""
    with Path(mark).open("a+") as file:
        file.write(json.dumps({"pid": os.getpid(), "flow_run": str(flow_run.id), **more}) + "\n")
        file.seek(0)
        return len(file.readlines())


def sleeping(seconds: float = 300) -> TrainingJob:
    job = TrainingJob.load(f"train-{SITE}")
    assert isinstance(job, TrainingJob)
    return _sleeping(job, seconds)


def _sleeping(job: TrainingJob, seconds: float) -> TrainingJob:
    return job.model_copy(update={"entry_point": "sleep", "parameters": {"seconds": seconds}})


@flow
def two_waits(mark: str) -> None:
    """The first run fails; if it were submitted again, this flow would never end."""
    leave(mark)
    first = submit_run(sleeping(), key="first", if_ended="resubmit")
    failed = wait_for_run(first, wait="suspend", on_failure="return")
    second = submit_run(sleeping(12), key="second")
    finished = wait_for_run(second, wait="suspend")
    again = submit_run(sleeping(), key="first", if_ended="resubmit")
    leave(mark, first=failed.status.state, second=finished.status.state, attempts=[first.attempt, again.attempt])


@flow
async def gathered(mark: str) -> None:
    leave(mark)
    job = _sleeping(await TrainingJob.aload(f"train-{SITE}"), 300)
    runs = [await asubmit_run(job, key=key) for key in ("first", "second")]
    await asyncio.gather(*(await_for_run(run, wait="suspend") for run in runs))


@flow
def impatient(mark: str) -> None:
    leave(mark)
    run = submit_run(sleeping(), key="slow")
    try:
        wait_for_run(run, wait="suspend", timeout=8, on_timeout="cancel")
    except WaitTimeout as error:
        leave(mark, error=str(error))


@flow
def killed(mark: str) -> None:
    if leave(mark) == 1:
        suspending.suspend_flow_run = lambda **_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    wait_for_run(submit_run(sleeping(4), key="once", if_ended="resubmit"), wait="suspend")
    leave(mark, done=True)


def deployment_of(name: str, called: str = "", **more: Any) -> RunnerDeployment:
    """The deployment of a flow of this file."""
    made = globals()[name].to_deployment(called or name, entrypoint_type=EntrypointType.MODULE_PATH, **more)
    assert isinstance(made, RunnerDeployment)
    return made


def main() -> None:
    """Serve those that the tests do not give to a worker."""
    serve(*(deployment_of(name) for name in ("two_waits", "impatient", "killed")), limit=4)
