"""The flows of the trials: the shapes in which people submit and wait."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from pathlib import Path

from prefect import flow, task
from prefect.runtime import flow_run

from prefect_mantik import (
    asubmit_runs,
    await_for_run,
    cancel_runs_of_flow,
    submit_run,
    submit_runs,
    wait_for_run,
    wait_for_runs,
)


def present(mark: str) -> int:
    """Leave our process id for the trial, and tell how often this flow run was begun."""
    marks = Path(os.environ["FAULTS_MARKS"])
    with (marks / f"{mark}.jsonl").open("a+") as file:
        file.write(json.dumps({"flow_run": str(flow_run.id), "pid": os.getpid()}) + "\n")
        file.seek(0)
        begun = len(file.readlines())
    threading.Thread(target=_end_with, args=(marks,), daemon=True).start()
    return begun


def _end_with(marks: Path) -> None:
    while marks.exists():
        time.sleep(2)
    os._exit(1)


@task(name="submit and wait")
def submit_and_wait(job: str, key: str, seconds: float) -> str:
    return str(wait_for_run(submit_run(job, key=key, parameters={"seconds": seconds})).status.state)


_TASK_BEGUN: list[bool] = []  # Prefect repeats a task in the same process


@task(name="submit and wait, once failing", retries=1)
def failing_once(job: str, key: str, seconds: float) -> str:
    run = submit_run(job, key=key, parameters={"seconds": seconds})
    _TASK_BEGUN.append(True)
    if len(_TASK_BEGUN) == 1:
        raise ConnectionError("what a task may meet")
    return str(wait_for_run(run).status.state)


@flow(name="held", on_cancellation=[cancel_runs_of_flow])
def held(jobs: list[str], mark: str, seconds: float = 600, fail: str = "") -> list[str]:
    """Submit, and wait in the flow's own thread."""
    begun = present(mark)
    if fail == "task":
        return [failing_once(job, f"train-{i}", seconds) for i, job in enumerate(jobs)]
    runs = submit_runs({f"train-{i}": job for i, job in enumerate(jobs)}, parameters={"seconds": seconds})
    if fail == "flow" and begun == 1:
        raise ConnectionError("what a flow may meet")
    return [str(result.status.state) for result in wait_for_runs(runs)]


@flow(name="retried", on_cancellation=[cancel_runs_of_flow], retries=1, retry_delay_seconds=1)
def retried(jobs: list[str], mark: str, seconds: float = 600) -> list[str]:
    """As `held`; fails once after the submit, and is retried by Prefect in the same process."""
    begun = present(mark)
    runs = submit_runs({f"train-{i}": job for i, job in enumerate(jobs)}, parameters={"seconds": seconds})
    if begun == 1:
        raise ConnectionError("what a flow may meet")
    return [str(result.status.state) for result in wait_for_runs(runs)]


@flow(name="gathered", on_cancellation=[cancel_runs_of_flow])
async def gathered(jobs: list[str], mark: str, seconds: float = 600) -> list[str]:
    """Several waits at the same time, on the flow's event loop."""
    present(mark)
    runs = await asubmit_runs({f"train-{i}": job for i, job in enumerate(jobs)}, parameters={"seconds": seconds})
    results = await asyncio.gather(*(await_for_run(run) for run in runs.values()))
    return [str(result.status.state) for result in results]


@flow(name="mapped", on_cancellation=[cancel_runs_of_flow])
def mapped(jobs: list[str], mark: str, seconds: float = 600) -> list[str]:
    """Submits and waits in threads, by `.map`."""
    present(mark)
    keys = [f"train-{i}" for i in range(len(jobs))]
    return [future.result() for future in submit_and_wait.map(jobs, keys, seconds)]


@flow(name="submitted", on_cancellation=[cancel_runs_of_flow])
def submitted(jobs: list[str], mark: str, seconds: float = 600) -> list[str]:
    """Submits and waits in threads, by `.submit`."""
    present(mark)
    futures = [submit_and_wait.submit(job, f"train-{i}", seconds) for i, job in enumerate(jobs)]
    return [future.result() for future in futures]


_CHILD_BEGUN: list[bool] = []


@flow(name="child", retries=1)
def child(jobs: list[str], seconds: float, fail: bool) -> list[str]:
    _CHILD_BEGUN.append(True)
    runs = submit_runs({f"train-{i}": job for i, job in enumerate(jobs)}, parameters={"seconds": seconds})
    if fail and len(_CHILD_BEGUN) == 1:
        raise ConnectionError("what a child flow may meet")
    return [str(result.status.state) for result in wait_for_runs(runs)]


@flow(name="mapped child")
def mapped_child(jobs: list[str], seconds: float) -> list[str]:
    keys = [f"train-{i}" for i in range(len(jobs))]
    return [future.result() for future in submit_and_wait.map(jobs, keys, seconds)]


@flow(name="parent", on_cancellation=[cancel_runs_of_flow])
def parent(jobs: list[str], mark: str, seconds: float = 600, fail: str = "") -> list[str]:
    """Runs belong to the root, whichever flow submits them."""
    present(mark)
    return child(jobs, seconds, fail == "child")


@flow(name="parent-of-mapped", on_cancellation=[cancel_runs_of_flow])
def parent_of_mapped(jobs: list[str], mark: str, seconds: float = 600) -> list[str]:
    present(mark)
    return mapped_child(jobs, seconds)


@flow(name="unhooked")
def unhooked(jobs: list[str], mark: str, seconds: float = 600) -> None:
    """No hook, and a wait that is none of ours: only a reaper ends these runs."""
    present(mark)
    submit_runs({f"train-{i}": job for i, job in enumerate(jobs)}, parameters={"seconds": seconds})
    time.sleep(600)


SHAPES = {each.name: each for each in (held, retried, gathered, mapped, submitted, parent, parent_of_mapped, unhooked)}
