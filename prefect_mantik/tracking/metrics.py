"""Final metrics of many runs in one call."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_mantik.runs import RunHandle, RunMetrics
from prefect_mantik.tracking.client import TrackingClient


async def final_metrics(client: TrackingClient, handles: Sequence[RunHandle]) -> list[RunMetrics]:
    """What runs of one tracking account logged, in the order given, from one `runs/search` for up to 200 runs.

    A run that MLflow does not know, or that logged nothing, has no metrics: that is no error here.
    """
    known = await client.runs_by_id(
        [handle.mlflow_run_id for handle in handles if handle.mlflow_run_id],
        [handle.mlflow_experiment_id for handle in handles if handle.mlflow_experiment_id],
    )
    gathered = []
    for handle in handles:
        run = known.get(handle.mlflow_run_id or "")
        gathered.append(
            RunMetrics(handle=handle, final=run.metrics, parameters=run.parameters, tags=run.tags)
            if run
            else RunMetrics(handle=handle, final={})
        )
    return gathered
