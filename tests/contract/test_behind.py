"""The second way: runs that the platform submitted, asked at their own site with the Connection's login."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from prefect_mantik.errors import NotSupported
from prefect_mantik.loop import acall
from prefect_mantik.runs import Reason, RunHandle, RunState
from prefect_mantik.sites.base import Site
from tests.contract.behind import (
    BASE,
    accept_logins,
    control_of,
    forget_logins,
    job_of,
    marked,
    refuse_logins,
    two_runs_under_one_key,
    unasked,
    until_running,
)
from tests.contract.conftest import PlatformRoad
from tests.sandbox_jobs import new_key

JOBS = f"{BASE}/jobs"
JOB = f"{JOBS}/{{jobId}}"
REFUSED = "refused the (login|client) .*not tried again until they change"
PAGE = "<html><head><title>Not Found</title></head></html>"


@pytest.fixture
def road(behind_road: PlatformRoad) -> Iterator[PlatformRoad]:
    """The platform with either kind of site behind it."""
    yield from unasked(behind_road)


@pytest.fixture
def alder(unicore_behind_road: PlatformRoad) -> Iterator[PlatformRoad]:
    """The platform with UNICORE behind it."""
    yield from unasked(unicore_behind_road)


# --- Whose job is whose ---------------------------------------------------------------------------------------------


async def test_two_runs_under_one_key_have_jobs_of_their_own(road: PlatformRoad) -> None:
    first, second = await two_runs_under_one_key(road, new_key())
    site = road.open()
    control_of(road).end_job(job_of(road, first)["id"], "OUT_OF_MEMORY")
    for _ in range(50):
        statuses = await acall(site.poll, [first, second])
        if statuses[first].state.is_end:
            break
        await asyncio.sleep(0.1)
    assert (statuses[first].state, statuses[first].reason) == (RunState.FAILED, Reason.OUT_OF_MEMORY)
    assert statuses[second].state is RunState.RUNNING


async def test_cancel_ends_the_job_of_its_run_and_not_the_other_one(road: PlatformRoad) -> None:
    first, second = await two_runs_under_one_key(road, new_key())
    await acall(road.open().cancel, first)
    status = await road.until_ended(first)
    assert (status.state, status.reason) == (RunState.KILLED, Reason.CANCELLED_BY_US)
    assert (job_of(road, first)["live"], job_of(road, second)["live"]) == (False, True)
    assert (await road.status(second)).state is RunState.RUNNING
    assert await marked(road, second) is None


async def test_read_log_reads_the_log_of_its_run(road: PlatformRoad) -> None:
    key = new_key()
    for _ in range(2):
        await acall(road.open().post, road.spec("fail"), key, 1)
    handles = await acall(road.open().find, key)
    site = road.open()
    for handle in handles:
        await road.until_ended(handle)
        text, _ = await acall(site.read_log, handle)
        assert f"run {handle.mlflow_run_id}".encode() in text


# --- A login that the site refuses ----------------------------------------------------------------------------------


async def test_a_refused_login_leaves_states_to_mlflow_and_is_said_once(
    road: PlatformRoad, caplog: pytest.LogCaptureFixture
) -> None:
    control_of(road).switch(queue_delay=30)
    handle = await road.submit(new_key())
    refuse_logins(road)
    site = road.open()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            status = (await acall(site.poll, [handle]))[handle]
    assert (status.state, status.site_word) == (RunState.SCHEDULED, "SCHEDULED")
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "is asked through MLflow only" in said[0]
    assert re.search(REFUSED, said[0])


async def test_cancel_takes_the_platforms_path_where_the_site_refuses_the_login(road: PlatformRoad) -> None:
    control_of(road).switch(all_endpoints=True)
    handle = await road.submit(new_key())
    refuse_logins(road)
    await acall(road.open().cancel, handle)
    assert not job_of(road, handle)["live"]
    assert await marked(road, handle) == "true"
    status = await road.status(handle)
    assert (status.state, status.reason) == (RunState.KILLED, Reason.CANCELLED_BY_US)


async def test_cancel_says_why_neither_way_works_and_takes_its_mark_back(road: PlatformRoad) -> None:
    handle = await road.submit(new_key())
    refuse_logins(road)
    with pytest.raises(NotSupported, match=f"was not cancelled.*Nor at the site itself: .*{REFUSED}.*What can"):
        await acall(road.open().cancel, handle)
    assert job_of(road, handle)["live"]
    assert not await marked(road, handle)
    control_of(road).end_job(job_of(road, handle)["id"], "FAILED")
    accept_logins(road)
    status = await road.until_ended(handle)
    assert status.reason is not Reason.CANCELLED_BY_US


async def test_read_log_takes_the_platforms_path_where_the_site_refuses_the_login(road: PlatformRoad) -> None:
    control_of(road).switch(all_endpoints=True)
    handle = await road.submit(new_key(), road.spec("fail"))
    await road.until_ended(handle)
    refuse_logins(road)
    text, offset = await acall(road.open().read_log, handle)
    assert f"run {handle.mlflow_run_id}".encode() in text
    assert offset == len(text)


async def test_read_log_says_why_neither_way_works(road: PlatformRoad) -> None:
    handle = await road.submit(new_key(), road.spec("fail"))
    await road.until_ended(handle)
    refuse_logins(road)
    with pytest.raises(NotSupported, match=f"was not read.*Nor at the site itself: .*{REFUSED}.*What shows"):
        await acall(road.open().read_log, handle)


# --- Many runs at a UNICORE site ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [{"status": 404, "body": PAGE, "content_type": "text/html"}, {"status": 404, "body": ""}, {"status": 403}],
    ids=["a gateway's page", "not found", "not allowed"],
)
async def test_one_job_that_cannot_be_asked_does_not_hide_the_others(
    alder: PlatformRoad, fault: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    handles = [await alder.submit(new_key()) for _ in range(2)]  # there is room for two
    await until_running(alder, *handles)
    broken, well = handles
    path = f"/ALDER/rest/core/jobs/{job_of(alder, broken)['id']}"
    control_of(alder).add_fault("status", route=path, method="GET", times=None, **fault)
    with caplog.at_level(logging.WARNING):
        statuses = await acall(alder.open().poll, handles)
    assert (statuses[well].state, statuses[well].site_word) == (RunState.RUNNING, "RUNNING")
    assert not statuses[broken].state.is_end
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    control_of(alder).end_job(job_of(alder, well)["id"], "TIMEOUT")
    for _ in range(50):
        status = (await acall(alder.open().poll, handles))[well]
        if status.state.is_end:
            break
        await asyncio.sleep(0.1)
    assert (status.state, status.reason) == (RunState.FAILED, Reason.TIME_LIMIT)


async def lists_per_poll(alder: PlatformRoad, site: Site, handles: list[RunHandle]) -> int:
    control_of(alder).reset_requests()
    await acall(site.poll, handles)
    return control_of(alder).count(route=JOBS, method="GET")


async def test_unknown_runs_cost_one_list_a_poll_and_known_ones_none(alder: PlatformRoad) -> None:
    handles = [await alder.submit(new_key()) for _ in range(3)]
    forget_logins()
    site = alder.open()
    assert await lists_per_poll(alder, site, handles) == 1
    assert await lists_per_poll(alder, site, handles) == 0
    assert await lists_per_poll(alder, alder.open(), handles) == 0


async def test_runs_whose_jobs_do_not_show_cost_one_list_a_poll(alder: PlatformRoad) -> None:
    handles = [await alder.submit(new_key()) for _ in range(3)]
    for handle in handles:
        control_of(alder).end_job(job_of(alder, handle)["id"], "VANISHED")
    forget_logins()
    site = alder.open()
    for _ in range(2):
        assert await lists_per_poll(alder, site, handles) == 1
    assert {status.state.is_end for status in (await acall(site.poll, handles)).values()} == {False}


async def test_what_was_learnt_of_a_job_is_not_asked_again(alder: PlatformRoad) -> None:
    first = await alder.submit(new_key())
    site = alder.open()
    await acall(site.poll, [first])
    second = await alder.submit(new_key())
    control_of(alder).reset_requests()
    await acall(site.poll, [first, second])
    assert control_of(alder).count(route=f"{JOB}/submitted") == 1
