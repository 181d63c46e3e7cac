"""The second way at a FirecREST site: one list for any number of runs, and answers that say nothing of a run."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator

import pytest

from prefect_mantik.errors import NotSupported
from prefect_mantik.firecrest import client as client_module
from prefect_mantik.loop import acall
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site
from tests.contract.behind import control_of, forget_logins, job_of, marked, unasked, until_running
from tests.contract.conftest import PlatformRoad
from tests.sandbox_jobs import new_key

JOBS = "/firecrest/v2/compute/{system}/jobs"
JOB = f"{JOBS}/{{jobId}}"
STAT = "/firecrest/v2/filesystem/{system}/ops/stat"
DAY = 86400


@pytest.fixture
def road(firecrest_behind_road: PlatformRoad, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlatformRoad]:
    """The platform with FirecREST behind it, which is given up soon; what a test does to it is undone."""
    monkeypatch.setattr(client_module, "POLL_TIMEOUT", 1.0)
    yield from unasked(firecrest_behind_road)
    control_of(firecrest_behind_road).change_site("cedar", unhealthy=False, accounting_down=False, entitled=True)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


async def asked(road: PlatformRoad, site: Site, handles: list[RunHandle]) -> dict[str, int]:
    """The requests about jobs of one round."""
    control_of(road).reset_requests()
    await acall(site.poll, handles)
    found = [item for item in control_of(road).requests() if "/compute/" in item["route"]]
    return {item["route"]: item["count"] for item in found}


# --- Few requests ---------------------------------------------------------------------------------------------------


async def test_any_number_of_runs_costs_one_list_a_round(road: PlatformRoad) -> None:
    handles = [await road.submit(new_key()) for _ in range(4)]
    site = road.open()
    for _ in range(2):
        assert await asked(road, site, handles) == {JOBS: 1}
    assert await asked(road, road.open(), handles) == {JOBS: 1}


async def test_a_job_that_the_list_leaves_out_is_asked_by_its_id(road: PlatformRoad) -> None:
    handles = [await road.submit(new_key()) for _ in range(2)]
    await until_running(road, *handles)
    left_out, other = handles
    job = job_of(road, left_out)["id"]
    control_of(road).end_job(job, "TIMEOUT")
    control_of(road).age_job(job, 2 * DAY)
    site = road.open()
    assert await asked(road, site, handles) == {JOBS: 1, JOB: 1}
    statuses = await acall(site.poll, handles)
    assert (statuses[left_out].state, statuses[left_out].reason) == (RunState.FAILED, Reason.TIME_LIMIT)
    assert statuses[other].state is RunState.RUNNING


async def test_a_job_that_was_never_seen_costs_no_more_than_the_list(road: PlatformRoad) -> None:
    handle = await road.submit(new_key())
    await until_running(road, handle)
    job = job_of(road, handle)["id"]
    control_of(road).end_job(job, "TIMEOUT")
    control_of(road).age_job(job, 2 * DAY)
    forget_logins()
    site = road.open()
    assert await asked(road, site, [handle]) == {JOBS: 1}
    assert (await acall(site.poll, [handle]))[handle].site_word == "RUNNING"  # MLflow's word


# --- Answers that say nothing of a run ------------------------------------------------------------------------------


async def status(site: Site, handle: RunHandle) -> RunStatus:
    return (await acall(site.poll, [handle]))[handle]


@pytest.mark.parametrize(
    ("switch", "position", "words"),
    [
        ("unhealthy", True, "is unhealthy"),
        ("accounting_down", True, "Connection refused"),
        ("entitled", False, "has no account at the site"),
    ],
)
async def test_a_site_that_cannot_answer_leaves_states_to_mlflow_until_it_can(
    road: PlatformRoad, switch: str, position: bool, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    control_of(road).switch(queue_delay=30)
    handle = await road.submit(new_key())
    site = road.open()
    assert (await status(site, handle)).site_word == "PENDING"
    for _ in range(2):
        caplog.clear()
        control_of(road).change_site("cedar", **{switch: position})
        for _ in range(2):
            told = await status(site, handle)
            assert (told.state, told.site_word) == (RunState.SCHEDULED, "SCHEDULED")
        [said] = warnings(caplog)
        assert "is asked through MLflow only" in said
        assert words in said
        control_of(road).change_site("cedar", **{switch: not position})
        assert (await status(site, handle)).site_word == "PENDING"


async def test_cancel_and_log_say_that_the_gate_is_closed(road: PlatformRoad) -> None:
    handle = await road.submit(new_key())
    await until_running(road, handle)
    control_of(road).change_site("cedar", unhealthy=True)
    with pytest.raises(NotSupported, match="was not cancelled.*Nor at the site itself: .*is unhealthy"):
        await acall(road.open().cancel, handle)
    with pytest.raises(NotSupported, match="was not read.*Nor at the site itself: .*is unhealthy"):
        await acall(road.open().read_log, handle)
    assert not await marked(road, handle)
    control_of(road).change_site("cedar", unhealthy=False)
    assert job_of(road, handle)["live"]
    await acall(road.open().cancel, handle)
    told = await road.until_ended(handle)
    assert (told.state, told.reason) == (RunState.KILLED, Reason.CANCELLED_BY_US)


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        (403, (RunState.KILLED, Reason.UNTOLD)),  # a directory that is not ours to read, now or later
        (503, (RunState.RUNNING, None)),  # MLflow's word, until the directory can be asked
    ],
)
async def test_one_directory_that_cannot_be_asked_does_not_hide_the_other_runs(
    road: PlatformRoad,
    answer: int,
    known: tuple[RunState, Reason | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether it was us who cancelled a job stands in its directory."""
    handles = [await road.submit(new_key()) for _ in range(2)]
    await until_running(road, *handles)
    cancelled, well = handles
    control_of(road).end_job(job_of(road, cancelled)["id"], "CANCELLED")
    control_of(road).end_job(job_of(road, well)["id"], "TIMEOUT")
    control_of(road).add_fault("status", route=STAT, status=answer, times=None)
    site = road.open()
    for _ in range(50):
        statuses = await acall(site.poll, handles)
        if statuses[well].state.is_end:
            break
        await asyncio.sleep(0.1)
    assert (statuses[well].state, statuses[well].reason) == (RunState.FAILED, Reason.TIME_LIMIT)
    assert (statuses[cancelled].state, statuses[cancelled].reason) == known
    assert warnings(caplog) == []
    control_of(road).clear_faults()
    told = await road.until_ended(cancelled)
    assert (told.state, told.reason) == (RunState.KILLED, Reason.CANCELLED_BY_OTHER)


async def test_a_job_whose_directory_is_gone_has_ended_all_the_same(road: PlatformRoad) -> None:
    handle = await road.submit(new_key())
    await until_running(road, handle)
    job = job_of(road, handle)
    control_of(road).end_job(job["id"], "CANCELLED")
    await asyncio.to_thread(shutil.rmtree, job["directory"])
    told = await road.until_ended(handle)
    assert (told.state, told.reason) == (RunState.KILLED, Reason.CANCELLED_BY_OTHER)


async def test_a_check_tells_of_a_client_without_an_account_at_the_site(road: PlatformRoad) -> None:
    assert [finding for finding in await acall(road.open().check) if not finding.ok] == []
    control_of(road).change_site("cedar", entitled=False)
    [wrong] = [finding for finding in await acall(road.open().check) if not finding.ok]
    assert wrong.what.startswith("log in at the site itself")
    assert "has no account at the site" in wrong.message
