"""Runs that the platform submitted, and their sites behind it: what both kinds of site are tested with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from prefect_mantik.firecrest import client as firecrest_client_module
from prefect_mantik.loop import acall
from prefect_mantik.runs import RunHandle, RunKey, RunState
from prefect_mantik.sandbox.process import SandboxControl
from prefect_mantik.sites.firecrest import behind as firecrest_module, jobs as firecrest_jobs_module
from prefect_mantik.sites.unicore import behind as unicore_module
from prefect_mantik.unicore import client as unicore_client_module
from tests.contract.conftest import PlatformRoad

BASE = "/{site}/rest/core"


def forget_logins() -> None:
    """What this process knows of logins and jobs: a login that was refused is not tried again."""
    for cached in (
        unicore_client_module.unicore_client,
        unicore_module._names_at,
        firecrest_client_module.firecrest_client,
        firecrest_module._known_at,
        firecrest_jobs_module._warn,
    ):
        cast("Any", cached).cache_clear()


def control_of(road: PlatformRoad) -> SandboxControl:
    return road.sandbox.control


def unasked(road: PlatformRoad) -> Iterator[PlatformRoad]:
    """The site, whom nobody in this process has asked yet; what a test does to it is undone."""
    forget_logins()
    yield road
    control_of(road).switch(all_endpoints=False)
    accept_logins(road)


def job_of(road: PlatformRoad, handle: RunHandle) -> dict[str, Any]:
    """The job of a run, by the platform's own books."""
    [job] = [job for job in control_of(road).jobs() if job["mlflowRunId"] == handle.mlflow_run_id]
    return job


async def until_running(road: PlatformRoad, *handles: RunHandle) -> None:
    for handle in handles:
        await road.until(handle, RunState.RUNNING)


async def marked(road: PlatformRoad, handle: RunHandle) -> str | None:
    """The tag of a run that we cancelled."""
    tracking = road.job().project.credentials.tracking_client()
    found = await acall(tracking.run, str(handle.mlflow_run_id))
    assert found is not None
    return found.tags.get("prefect_mantik.cancelled")


def refuse_logins(road: PlatformRoad) -> None:
    """From now on the site does not know the Connection's login."""
    forget_logins()
    if road.place == "cedar":
        control_of(road).change_site("cedar", refuse_logins=True)
        return
    control_of(road).expire_unicore_sessions()
    control_of(road).add_fault("status", route=BASE, status=403, times=None)


def accept_logins(road: PlatformRoad) -> None:
    """As before."""
    control_of(road).change_site("cedar", refuse_logins=False)
    control_of(road).clear_faults()
    forget_logins()


async def two_runs_under_one_key(road: PlatformRoad, key: RunKey) -> list[RunHandle]:
    """Two processes at the same instant: the platform takes both."""
    for _ in range(2):
        await acall(road.open().post, road.spec("sleep"), key, 1)
    handles = await acall(road.open().find, key)
    assert len(handles) == 2
    await until_running(road, *handles)
    return handles
