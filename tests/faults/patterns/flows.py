"""The patterns as flows. No key at the site: what was submitted is known to Prefect only.

`fail` makes the step after the training fail once, as an evaluation may: then `flow.retries` begins anew.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.results import get_result_store
from prefect.runtime import flow_run
from prefect.transactions import transaction

from prefect_mantik import cancel_runs_of_flow, submit_run, wait_for_run
from tests.faults.deployed.flows import present
from tests.faults.patterns.clients import submit_job, wait_for_job

RETRIES: dict[str, Any] = {"retries": 2, "retry_delay_seconds": 1}


@task(persist_result=True, **RETRIES)
def submit(site: str, name: str, seconds: float) -> str:
    return submit_job(site, name, seconds)


@task(**RETRIES)
def wait(site: str, job: str) -> str:
    return wait_for_job(site, job)


@task(**RETRIES)
def submit_and_wait(site: str, name: str, seconds: float) -> str:
    return wait_for_job(site, submit_job(site, name, seconds))


@task(**RETRIES)
def submit_in_transaction(site: str, name: str, seconds: float, key: str) -> str:
    with transaction(key=key, store=get_result_store()) as txn:
        if txn.is_committed() and (record := txn.read()) is not None:
            return str(record.result)
        job = submit_job(site, name, seconds)
        txn.stage(job)
    return job


def evaluate(begun: int, fail: bool) -> None:
    if fail and begun == 1:
        raise ConnectionError("what an evaluation may meet")


@flow(name="two-tasks", retries=1, persist_result=True)
def two_tasks(site: str, mark: str, seconds: float, fail: bool = False) -> str:
    """A task that submits, with retries and a persisted result, then a task that waits."""
    begun = present(mark)
    state = wait(site, submit(site, f"pattern-{mark}", seconds))
    evaluate(begun, fail)
    return state


@flow(name="one-task", retries=1)
def one_task(site: str, mark: str, seconds: float, fail: bool = False) -> str:
    """One task that submits and waits, with retries."""
    begun = present(mark)
    state = submit_and_wait(site, f"pattern-{mark}", seconds)
    evaluate(begun, fail)
    return state


@flow(name="transaction", retries=1, persist_result=True)
def in_transaction(site: str, mark: str, seconds: float, fail: bool = False) -> str:
    """A transaction with a key around the submit."""
    begun = present(mark)
    job = submit_in_transaction(site, f"pattern-{mark}", seconds, f"submit-{flow_run.id}")
    state = wait(site, job)
    evaluate(begun, fail)
    return state


our_submit = submit_run.with_options(**RETRIES)


@flow(name="ours", retries=1, on_cancellation=[cancel_runs_of_flow])
def ours(site: str, mark: str, seconds: float, fail: bool = False) -> str:
    """`submit_run` and `wait_for_run`, with the hook."""
    begun = present(mark)
    state = str(wait_for_run(our_submit(f"train-{site}", key="train", parameters={"seconds": seconds})).status.state)
    evaluate(begun, fail)
    return state


PATTERNS = {
    "submit task, wait task": two_tasks,
    "one task": one_task,
    "transaction": in_transaction,
    "prefect-mantik": ours,
}
