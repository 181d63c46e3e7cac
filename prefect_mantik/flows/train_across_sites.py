"""Train one model at several sites at once, compare, keep the best."""

from __future__ import annotations

from typing import Literal

from prefect import flow, get_run_logger

from prefect_mantik.documents import aload_block
from prefect_mantik.errors import RunsFailed, SubmitsFailed
from prefect_mantik.jobs import TrainingJob
from prefect_mantik.lifecycle.hook import cancel_runs_of_flow
from prefect_mantik.loop import call
from prefect_mantik.reports import publish_comparison
from prefect_mantik.runs import IfEnded
from prefect_mantik.tasks import (
    authenticate,
    gather_metrics,
    register_model,
    select_best_run,
    submit_runs,
    wait_for_runs,
)


@flow(name="train-across-sites", on_cancellation=[cancel_runs_of_flow])
def train_across_sites(
    jobs: list[TrainingJob | str],
    metric: str = "val_loss",
    mode: Literal["min", "max"] = "min",
    model_name: str = "surrogate",
    if_ended: IfEnded = "raise",
    wait: Literal["hold", "suspend"] = "hold",
    timeout: float | None = None,
) -> dict[str, str | float | int]:
    """Train at several sites at once, compare the final metrics, register the best model.

    Args:
        jobs: Saved training jobs, by name or picked: one for each run.
        metric: Metric that decides, as the training logs it.
        mode: Whether the smallest ("min") or the largest ("max") value is the best.
        model_name: Name under which the best model is registered.
        if_ended: When the flow run is tried again: what to do with runs that failed before, "raise" or "resubmit".
        wait: "hold" keeps this process while the runs wait and train. "suspend" ends it, see `wait_for_runs`.
        timeout: Seconds after which to stop waiting; the runs go on. None: no limit.

    Returns:
        What happened, in numbers: runs, finished, sites, best site, its value, model name and version.

    Raises:
        SubmitsFailed: Some runs were not submitted. The others were waited for and compared; nothing was registered.
        WaitTimeout: The time passed first.
        RunsFailed: Some runs did not finish. The others were compared; nothing was registered.
    """
    loaded = {f"train-{number}": _loaded(job) for number, job in enumerate(jobs)}
    accounts = [job.project.credentials for job in loaded.values()]
    for account in {(account.api_url, account.username): account for account in accounts}.values():
        authenticate(account)

    not_submitted = None
    try:
        runs = submit_runs(loaded, if_ended=if_ended)
    except SubmitsFailed as error:
        runs, not_submitted = error.handles, error
    results = wait_for_runs(runs, on_failure="return", wait=wait, timeout=timeout) if runs else []

    metrics = gather_metrics([result for result in results if result.finished])
    failed = not_submitted or (RunsFailed(results) if not all(result.finished for result in results) else None)
    if failed:
        publish_comparison(results, metrics, metric=metric)
        raise failed
    best = model = None
    try:
        best = select_best_run(metrics, metric, mode=mode)
        model = register_model(best, name=model_name)
    finally:
        publish_comparison(results, metrics, metric=metric, best=best, model=model)

    value = best.final[metric].value
    get_run_logger().info(
        "%s has the best %s, %g: registered as %s version %s, see %s",
        best.handle.describe(),
        metric,
        value,
        model.name,
        model.version,
        model.link,
    )
    return {
        "runs": len(results),
        "sites": len({result.handle.site_name for result in results}),
        "finished": sum(result.finished for result in results),
        "best_site": best.handle.site_name,
        "metric": metric,
        "value": value,
        "model": model.name,
        "version": model.version,
    }


def _loaded(job: TrainingJob | str) -> TrainingJob:
    return call(aload_block, TrainingJob, job) if isinstance(job, str) else job
