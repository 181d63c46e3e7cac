"""Asking, cancelling and waiting at UNICORE sites while something else is out of order."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from pydantic import SecretStr

from prefect_mantik import MantikConnection, UnicoreCredentials, jobs as verbs
from prefect_mantik.errors import ConfigurationError, LoginRefused
from prefect_mantik.loop import acall
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus
from prefect_mantik.sandbox.process import SandboxControl
from prefect_mantik.sites import direct_site, mlflow_runs
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.opening import remember
from prefect_mantik.sites.unicore import jobs as unicore_jobs
from prefect_mantik.tracking import TrackedRun, TrackingClient
from prefect_mantik.unicore import login as login_module
from prefect_mantik.waiting import tending
from prefect_mantik.waiting.waits import wait_until_ended
from tests.contract.conftest import UnicoreRoad
from tests.sandbox_jobs import credentials, new_key

BASE = "/{site}/rest/core"
JOB = f"{BASE}/jobs/{{jobId}}"
FILES = f"{BASE}/storages/{{storageId}}/files/{{path}}"


@pytest.fixture
def alder(sandbox_unicore_road: UnicoreRoad) -> Iterator[UnicoreRoad]:
    """The sandbox's site, whose switches are put back."""
    control = sandbox_unicore_road.sandbox.control
    yield sandbox_unicore_road
    control.switch(token_lifetime=3600.0)
    control.expire_tokens()


def control_of(road: UnicoreRoad) -> SandboxControl:
    return road.sandbox.control


async def tracked(road: UnicoreRoad, handle: RunHandle) -> TrackedRun:
    tracking = road.job().project.credentials.tracking_client()
    found = await acall(tracking.run, str(handle.mlflow_run_id))
    assert found is not None
    return found


def tags(road: UnicoreRoad, handle: RunHandle) -> list[str]:
    with road._http() as http:
        found: list[str] = http.get(f"{road.url}/jobs/{handle.remote_id}").raise_for_status().json()["tags"]
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


async def waited(site: Site, handle: RunHandle, timeout: float = 60) -> RunStatus:
    async def same(_: RunHandle) -> Site:
        return site

    return (await acall(wait_until_ended, {handle: site}, reopen=same, timeout=timeout))[handle]


# --- The platform is down -------------------------------------------------------------------------------------------


def no_token_from_now_on(road: UnicoreRoad) -> None:
    """The platform gives out none, and those that it gave out are refused."""
    control_of(road).expire_tokens()
    control_of(road).add_fault("status", route="/mantik/tokens/*", status=503, retry_after=0, times=None)


async def test_poll_and_cancel_write_no_token_and_a_wait_does(alder: UnicoreRoad) -> None:
    control_of(alder).switch(queue_delay=30)
    handle = await alder.submit(new_key())
    site = alder.open()
    control_of(alder).reset_requests()
    statuses = await acall(site.poll, [handle])
    assert statuses[handle].state is RunState.SCHEDULED
    assert control_of(alder).count(route=FILES, method="PUT") == 0
    again = await acall(site.tend, statuses)
    assert control_of(alder).count(route=FILES, method="PUT") == 1
    assert again is not None
    assert 0 < again < 1800.1  # the middle of the life of a token that other tests of this process may have used
    await acall(site.tend, statuses)
    assert control_of(alder).count(route=FILES, method="PUT") == 1
    await acall(alder.open().cancel, handle)
    assert control_of(alder).count(route=FILES, method="PUT") == 1


async def test_poll_does_not_wait_for_the_tracking_server(alder: UnicoreRoad) -> None:
    control_of(alder).switch(queue_delay=30)
    handle = await alder.submit(new_key())
    no_token_from_now_on(alder)
    began = time.monotonic()
    assert (await acall(alder.open().poll, [handle]))[handle].state is RunState.SCHEDULED
    assert time.monotonic() - began < 8


async def test_cancel_aborts_first_and_waits_for_the_tracking_server_within_bounds(
    alder: UnicoreRoad, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_site, "CLOSE_TIMEOUT", 1.0)
    key = new_key()
    handle = await alder.submit(key)
    await alder.until(handle, RunState.RUNNING)
    no_token_from_now_on(alder)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        await acall(alder.open().cancel, handle)
    assert time.monotonic() - began < 8
    assert [text for text in warnings(caplog) if f"The MLflow run of {handle.describe()} was not closed." in text]
    for _ in range(100):
        if not any(job["live"] for job in alder.jobs(key)):
            break
        await asyncio.sleep(0.1)
    assert [job["live"] for job in alder.jobs(key)] == [False]


async def test_a_refused_account_is_looked_up_again_at_once(
    alder: UnicoreRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its password was changed, and its block is saved anew while the books of a run are being closed."""
    handle = await alder.submit(new_key())
    site, right = alder.open(), alder.job().project.credentials
    wrong = right.model_copy(update={"password": SecretStr("before")})
    saved = [wrong.tracking_client(), right.tracking_client()]

    async def looked_up(*_: object) -> TrackingClient:
        return saved.pop(0)

    monkeypatch.setattr(mlflow_runs, "tracking_of", looked_up)
    statuses = {handle: RunStatus(state=RunState.KILLED, observed_at=datetime.now(timezone.utc))}
    with pytest.raises(LoginRefused):
        await acall(site.tend, statuses)
    await acall(site.tend, statuses)
    assert saved == []
    assert (await tracked(alder, handle)).status == "KILLED"


async def test_a_wait_ends_though_the_tracking_server_is_down(
    alder: UnicoreRoad, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tending, "TEND_TIMEOUT", 1.0)
    handle = await alder.submit(new_key(), alder.spec("sleep", seconds=1))
    no_token_from_now_on(alder)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        status = await waited(alder.open(), handle, 30)
    assert status.state is RunState.FINISHED
    assert time.monotonic() - began < 25
    assert warnings(caplog) == [f"{handle.describe()}: no answer in time"]


# --- Cancel ---------------------------------------------------------------------------------------------------------


async def test_cancel_closes_the_mlflow_run_at_once(alder: UnicoreRoad) -> None:
    """Nobody may wait for the run, or ask for it, ever again."""
    handle = await alder.submit(new_key())
    await acall(alder.open().cancel, handle)
    found = await tracked(alder, handle)
    assert (found.status, found.tags.get("prefect_mantik.cancelled")) == ("KILLED", "true")
    assert found.end_time is not None


async def test_a_job_whose_tags_cannot_be_set_is_cancelled_all_the_same(
    alder: UnicoreRoad, caplog: pytest.LogCaptureFixture
) -> None:
    handle = await alder.submit(new_key())
    before = tags(alder, handle)
    control_of(alder).add_fault("status", route=JOB, method="PUT", status=403, times=None)
    with caplog.at_level(logging.WARNING):
        await acall(alder.open().cancel, handle)
    assert [text for text in warnings(caplog) if f"Job {handle.remote_id} is not marked as cancelled by us." in text]
    status = await alder.until_ended(handle)
    assert status.state is RunState.KILLED
    assert tags(alder, handle) == before


async def test_tags_that_an_answer_leaves_out_are_not_replaced_by_fewer(alder: UnicoreRoad) -> None:
    key = new_key()
    handle = await alder.submit(key)
    before = tags(alder, handle)
    control_of(alder).add_fault("status", route=JOB, method="GET", status=200, body='{"status": "RUNNING"}')
    await acall(alder.open().cancel, handle)
    assert set(before) <= set(tags(alder, handle))
    assert [job["id"] for job in alder.jobs(key)] == [handle.remote_id]
    assert (await alder.until_ended(handle)).state is RunState.KILLED


async def test_cancel_adds_its_mark_to_the_tags_that_are_there(alder: UnicoreRoad) -> None:
    handle = await alder.submit(new_key())
    before = tags(alder, handle)
    await acall(alder.open().cancel, handle)
    assert set(tags(alder, handle)) == {*before, "cancelled-by-us"}
    assert (await alder.until_ended(handle)).reason is Reason.CANCELLED_BY_US


async def test_a_job_that_is_held_is_waited_for_without_opening_the_site_anew(alder: UnicoreRoad) -> None:
    handle = await alder.submit(new_key(), alder.spec("sleep", seconds=1))
    await alder.until(handle, RunState.RUNNING)
    control_of(alder).hold_job(handle.remote_id, reason="Held by the administrator")
    site = alder.open()
    reopened: list[RunHandle] = []

    async def reopen(run: RunHandle) -> Site:
        reopened.append(run)
        return site

    waiting = asyncio.ensure_future(acall(wait_until_ended, {handle: site}, reopen=reopen, timeout=30))
    await asyncio.sleep(2.5)
    assert not waiting.done()
    control_of(alder).release_job(handle.remote_id)
    assert (await waiting)[handle].state is RunState.FINISHED
    assert reopened == []


# --- Tokens that prove who we are -----------------------------------------------------------------------------------


async def test_a_wait_goes_on_while_a_token_file_is_being_written(
    alder: UnicoreRoad, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a login looks for it, and the session has ended meanwhile."""
    monkeypatch.setattr(login_module, "_PAUSE", 0.02)
    control, file = control_of(alder), tmp_path / "token"
    file.write_text(control.unicore_token(alder.username))
    site = alder.open(site=alder.site(login=UnicoreCredentials(token_file=str(file))))
    handle = await alder.submit(new_key(), alder.spec("sleep", seconds=2), site=site)
    with caplog.at_level(logging.INFO):
        waiting = asyncio.ensure_future(waited(site, handle))
        await asyncio.sleep(0.3)
        file.write_text("")
        control.expire_unicore_sessions()
        for _ in range(100):
            if "state unknown" in caplog.text:
                break
            await asyncio.sleep(0.05)
        assert not waiting.done()
        file.write_text(control.unicore_token(alder.username))
        assert (await waiting).state is RunState.FINISHED
    assert f"state unknown. The token file {file} must hold one token" in caplog.text
    assert "Waiting goes on, and asks again when the credentials change." in caplog.text
    assert "can be asked again" in caplog.text


@pytest.mark.parametrize("sign", ["\n", "\r\n", "\x00", "\x1b", "\x7f", " ", "ü"])
async def test_a_token_with_a_sign_that_no_header_holds_is_neither_sent_nor_shown(
    alder: UnicoreRoad, sign: str
) -> None:
    control_of(alder).reset_requests()
    site = alder.site(login=UnicoreCredentials(token=f"firsthalf{sign}secondhalf")).open()
    with pytest.raises(ConfigurationError, match="must hold one token, on one line") as caught:
        await acall(site.list)
    text = str(caught.value) + repr(caught.value) + str(caught.value.__context__) + str(caught.value.__cause__)
    assert "half" not in text
    assert control_of(alder).count() == 0


async def test_a_token_of_a_connection_with_a_line_break_is_neither_sent_nor_shown(alder: UnicoreRoad) -> None:
    control = control_of(alder)
    connection = MantikConnection(
        connection_id=alder.sandbox.env["MANTIK_CONNECTION_ID_ALDER"], credentials=credentials(alder.sandbox)
    )
    kept = {
        "connectionId": alder.sandbox.env["MANTIK_CONNECTION_ID_ALDER"],
        "connectionProvider": "UNICORE",
        "token": "firsthalf\nsecondhalf",
    }
    route = "/users/{userId}/settings/connections/{connectionId}"
    control.expire_unicore_sessions()
    control.add_fault("status", route=route, status=200, body=json.dumps(kept), times=None)
    control.reset_requests()
    site = alder.site(login=connection, group="sandbox-budget").open()  # a client of the test's own
    with pytest.raises(ConfigurationError, match="must hold one token, on one line") as caught:
        await acall(site.list)
    assert "half" not in str(caught.value) + repr(caught.value)
    assert control.count(route=BASE) == 0


# --- Long logs ------------------------------------------------------------------------------------------------------


async def test_a_long_log_is_read_in_parts_and_shown_from_its_end(
    alder: UnicoreRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await alder.submit(new_key(), alder.spec("chatter", lines=20))
    await alder.until_ended(handle)
    site = alder.open()
    whole, size = await acall(site.read_log, handle)
    assert len(whole) == size > 2000
    monkeypatch.setattr(unicore_jobs, "LOG_LIMIT", 1000)
    part, offset = await acall(site.read_log, handle)
    assert (part, offset) == (whole[:1000], 1000)
    parts = [part]
    while part:
        part, offset = await acall(site.read_log, handle, offset)
        assert len(part) <= 1000
        parts.append(part)
    assert (b"".join(parts), offset) == (whole, size)

    monkeypatch.setattr(verbs, "LOG_LIMIT", 1000)
    remember(handle, site, alder.job().project)
    text = await acall(verbs.log, handle)
    assert text == f"[the first {size - 1000} bytes are left out]\n{whole[-1000:].decode()}"
    monkeypatch.setattr(verbs, "LOG_LIMIT", size)
    monkeypatch.setattr(unicore_jobs, "LOG_LIMIT", size)
    assert await acall(verbs.log, handle) == whole.decode()
