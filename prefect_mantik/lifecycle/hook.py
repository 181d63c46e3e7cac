"""The hook that cancels the runs of a flow run together with it."""

from __future__ import annotations

from typing import Any

from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun
from prefect.logging.loggers import flow_run_logger

from prefect_mantik import cancelling
from prefect_mantik.loop import call


# Prefect's runner passes these by keyword: other names would end in a TypeError, with the jobs left running.
def cancel_runs_of_flow(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End the training runs of a flow run: a hook for `@flow(on_cancellation=[cancel_runs_of_flow])`.

    It asks each saved site that the flow run submitted to for the jobs that it and its child flow runs made, also for
    those whose submit was cut short. What it cannot reach within 30 s is said in the flow run's log, and left to the
    reaper. It belongs to the root flow: Prefect loses the hooks of child flows whose process it has to kill. On a
    child flow it ends the runs that this child submitted.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: The state that it goes to.
    """
    call(cancelling.cancel_runs_of, flow_run.id, flow_run_logger(flow_run, flow), within=cancelling.TIMEOUT)
