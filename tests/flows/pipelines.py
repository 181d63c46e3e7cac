"""Flows that a test starts by hand, in a process of their own: notice interval, shape and jobs are its arguments."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from prefect import flow, task
from prefect.runtime import flow_run

from prefect_mantik import (
    RunHandle,
    TrainingJob,
    asubmit_run,
    await_for_run,
    noticing,
    submit_run,
    wait_for_run,
    wait_for_runs,
)


def sleeping(job: TrainingJob) -> TrainingJob:
    return job.model_copy(update={"entry_point": "sleep", "parameters": {"seconds": 120}})


def sleeper(name: str) -> TrainingJob:
    job = TrainingJob.load(name)
    assert isinstance(job, TrainingJob)
    return sleeping(job)


@flow
def direct(jobs: list[str]) -> None:
    print("ID", flow_run.id, flush=True)
    wait_for_runs([submit_run(sleeper(name), key=name) for name in jobs])


@flow
async def gathered(jobs: list[str]) -> None:
    print("ID", flow_run.id, flush=True)
    loaded = [sleeping(await TrainingJob.aload(name)) for name in jobs]
    handles = [await asubmit_run(job, key=name) for job, name in zip(loaded, jobs, strict=True)]
    await asyncio.gather(*(await_for_run(handle) for handle in handles))


@task
def one(handle: RunHandle) -> str:
    return str(wait_for_run(handle).status.state)


@flow
def mapped(jobs: list[str]) -> None:
    print("ID", flow_run.id, flush=True)
    one.map([submit_run(sleeper(name), key=name) for name in jobs]).result()


@flow
def nested(jobs: list[str]) -> None:
    direct(jobs)


SHAPES: dict[str, Callable[..., Any]] = {"direct": direct, "gathered": gathered, "mapped": mapped, "nested": nested}

if __name__ == "__main__":
    noticing.NOTICE, shape, *names = float(sys.argv[1]), *sys.argv[2:]
    outcome = SHAPES[shape](names)
    if asyncio.iscoroutine(outcome):
        asyncio.run(outcome)
