"""The MLflow runs of jobs: opened before a job is sent to a site directly, closed when it died without doing so."""

from __future__ import annotations

from datetime import datetime, timezone

from prefect_mantik.credentials import MantikCredentials, MantikProject
from prefect_mantik.documents import aload_block, reference
from prefect_mantik.errors import KeyInUse, RequestFailed
from prefect_mantik.log import run_logger
from prefect_mantik.runs import RunHandle, RunKey, RunSpec, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.tracked import (
    CANCELLED_TAG,
    KEY_TAG,
    RECORD_TAG,
    RECORDED,
    REFUSED_TAG,
    identity_of,
    run_name,
)
from prefect_mantik.tracking import TrackedRun, TrackingClient
from prefect_mantik.tracking.client import PREPARING

_FAILED = ("FAILED", "KILLED")


async def _runs_under(project: MantikProject, key: RunKey) -> tuple[str, list[TrackedRun]]:
    """The experiment, and the runs in it that bear a key in the tag or in the name, as untagged ones do."""
    tracking = project.credentials.tracking_client()
    ids = project.project_id, project.experiment_repository_id
    experiment = (await project.credentials.get_client().experiment(*ids)).mlflow_experiment_id
    tagged = await tracking.runs_tagged(KEY_TAG, key.site_key, [experiment])
    named = await tracking.runs_named_like(key.site_key, [experiment])
    runs = {run.run_id: run for run in [*tagged, *named]}.values()
    return experiment, [run for run in runs if not run.deleted and REFUSED_TAG not in run.tags]


def _is_at(site: Site, run: TrackedRun) -> bool:
    told = identity_of(run)
    return (told.get("kind", "mantik"), told.get("site_name")) == (site.kind, site.name)


def _attempt(run: TrackedRun) -> int:
    told = str(identity_of(run).get("attempt", ""))
    return int(told) if told.isdigit() else 1


def _waits(run: TrackedRun) -> bool:
    """Whether a run waits for a job: its submit is under way, or was cut short before the site took one."""
    return run.status == "SCHEDULED" or (run.status == "RUNNING" and run.name.endswith(PREPARING))


async def latest_attempt(project: MantikProject, key: RunKey, site: Site) -> int:
    """The highest attempt under a key that MLflow knows of, whatever became of it; 0 for none."""
    _, runs = await _runs_under(project, key)
    return max((_attempt(run) for run in runs if _is_at(site, run)), default=0)


async def open_mlflow_run(
    project: MantikProject, spec: RunSpec, key: RunKey, attempt: int, site: Site
) -> tuple[TrackedRun, bool]:
    """The MLflow run of an attempt: the one that waits for a job under its key, or a new one; and whether it is new.

    Raises:
        KeyInUse: The key belongs to a run at another site.
    """
    tracking = project.credentials.tracking_client()
    experiment, runs = await _runs_under(project, key)
    for run in runs:
        if not _is_at(site, run) and run.status not in _FAILED:
            raise KeyInUse(
                f"Key '{key.name}' belongs to a run at {identity_of(run).get('site_name', 'another site')} "
                f"({tracking.run_link(run.experiment_id, run.run_id)}), not at {site.name}. Use another key."
            )
    for run in runs:
        if _is_at(site, run) and _attempt(run) == attempt and _waits(run):
            if run.status != "SCHEDULED":
                name = run_name(key, attempt, spec)
                await tracking.schedule_run(run.run_id, name)
                run = run.model_copy(update={"name": name})
            return run, False
    record = RunHandle(
        site=site.reference,
        site_name=site.name,
        kind=site.kind,
        remote_id="",
        site_key=key.site_key,
        attempt=attempt,
        name=key.slug,
        spec_digest=spec.digest[:8],
        platform_project_id=spec.project_id,
    )
    tags = {KEY_TAG: key.site_key, RECORD_TAG: record.model_dump_json(include=RECORDED, exclude_none=True)}
    return await tracking.create_run(experiment, run_name(key, attempt, spec), tags), True


async def refuse_mlflow_run(project: MantikProject, run: TrackedRun) -> None:
    """Close the MLflow run of a job that the site refused, and free the key. A help: never raises."""
    tracking = project.credentials.tracking_client()
    try:
        await tracking.set_tags(run.run_id, {REFUSED_TAG: "true"})
        await tracking.set_status(run.run_id, "FAILED", datetime.now(timezone.utc))
    except RequestFailed as error:
        run_logger().warning("The MLflow run %s of a refused submit was not closed. %s", run.name, error)


async def forgotten_runs(project: MantikProject, key: RunKey, site: Site) -> list[RunHandle]:
    """The runs under a key that MLflow knows and the site does not: sites forget jobs some time after their end.

    One that still waits for a job is none: its submit was cut short before the site took one.
    """
    tracking = project.credentials.tracking_client()
    _, runs = await _runs_under(project, key)
    return [
        RunHandle(
            site=site.reference,
            site_name=site.name,
            kind=site.kind,
            remote_id=f"forgotten-{run.run_id}",
            site_key=key.site_key,
            attempt=_attempt(run),
            name=key.slug,
            spec_digest=str(identity_of(run).get("spec_digest", "")),
            account=reference(project.credentials),
            mlflow_run_id=run.run_id,
            mlflow_experiment_id=run.experiment_id,
            platform_project_id=project.project_id,
            submitted_at=run.start_time,
            links={"MLflow": tracking.run_link(run.experiment_id, run.run_id)},
        )
        for run in runs
        if _is_at(site, run) and not _waits(run)
    ]


async def close_mlflow_run(tracking: TrackingClient, handle: RunHandle, status: RunStatus) -> None:
    """Close the MLflow run of a job that ended without doing so itself.

    Raises:
        RequestFailed: MLflow did not take it; try again later.
    """
    if handle.mlflow_run_id is None or not status.state.is_end:
        return
    word = {RunState.FINISHED: "FINISHED", RunState.KILLED: "KILLED"}.get(status.state, "FAILED")
    run = await tracking.run(handle.mlflow_run_id)
    if run is None or run.deleted or run.status in ("FAILED", "KILLED", word):
        return
    if run.status == "FINISHED" and word != "FINISHED":
        run_logger().warning(
            "%s logged that it finished, and then its job ended %s.", handle.describe(), status.describe()
        )
        return
    if run.status == "SCHEDULED" and word == "FINISHED":
        run_logger().warning(
            "%s finished without logging to MLflow. Where it had no valid token, its metrics are in mlruns/ of its "
            "run directory.",
            handle.describe(),
        )
    await tracking.set_status(handle.mlflow_run_id, word, status.ended_at or status.observed_at)
    if word == "KILLED":
        await tracking.set_tags(handle.mlflow_run_id, {CANCELLED_TAG: "true"})


async def tracking_of(handle: RunHandle, project: MantikProject | None) -> TrackingClient | None:
    """The tracking server of a run, as the account that submitted it; None where that is not known here."""
    if project is not None and handle.account in (None, reference(project.credentials)):
        return project.credentials.tracking_client()
    if handle.account is None:
        return None
    return (await aload_block(MantikCredentials, handle.account)).tracking_client()
