"""Jobs that a UNICORE site no longer knows, or says so: who forgot is not who lost, and a gateway knows nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import pytest

from prefect_mantik.errors import RequestFailed, RunEnded, ServiceUnavailable, SubmitUnknown
from prefect_mantik.loop import acall
from prefect_mantik.runs import Reason, RunHandle, RunKey, RunSpec, RunState
from prefect_mantik.sites import base
from prefect_mantik.sites.tracked import KEY_TAG
from prefect_mantik.sites.unicore.site import DirectUnicoreSite
from prefect_mantik.tracking import TrackedRun, TrackingClient
from prefect_mantik.unicore import UnicoreClient
from tests.contract.conftest import UnicoreRoad
from tests.sandbox_jobs import MemoryLedger, new_key

JOBS = "/{site}/rest/core/jobs"
JOB = f"{JOBS}/{{jobId}}"
PAGE = "<html><head><title>Not Found</title></head></html>"
GATEWAY: dict[str, Any] = {
    "action": "status",
    "status": 404,
    "body": PAGE,
    "content_type": "text/html",
    "method": "GET",
    "route": JOB,
}
EMPTY: dict[str, Any] = {"action": "status", "status": 404, "body": "", "method": "GET", "route": JOB}


@pytest.fixture
def alder(sandbox_unicore_road: UnicoreRoad) -> UnicoreRoad:
    return sandbox_unicore_road


@pytest.fixture
def _no_run_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "FIRST_MINUTES", 0.0)


def posts(road: UnicoreRoad) -> int:
    return road.sandbox.control.count(route=JOBS, method="POST")


def tracking_of(road: UnicoreRoad) -> TrackingClient:
    return road.job().project.credentials.tracking_client()


async def runs_under(road: UnicoreRoad, key: RunKey) -> list[TrackedRun]:
    """All MLflow runs that bear a key."""
    tracking = tracking_of(road)
    return await acall(tracking.runs_tagged, KEY_TAG, key.site_key, await acall(tracking.experiment_ids))


def forget(road: UnicoreRoad, handle: RunHandle) -> None:
    """The site removes a job, as it does some weeks after its end."""
    with road._http() as http:
        http.delete(f"{road.url}/jobs/{handle.remote_id}").raise_for_status()


# --- 404s that say nothing of the job -------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_run_is_young")
@pytest.mark.parametrize("fault", [GATEWAY, EMPTY], ids=["a gateway's page", "empty, and the job is listed"])
async def test_a_404_for_a_live_job_ends_nothing(alder: UnicoreRoad, fault: dict[str, Any]) -> None:
    key, control = new_key(), alder.sandbox.control
    handle = await alder.submit(key)
    control.add_fault(**fault, times=None)
    status = await alder.status(handle)
    assert (status.state, status.reason) == (RunState.UNKNOWN, None)
    with pytest.raises(RequestFailed):
        await acall(alder.open().cancel, handle)
    control.clear_faults()
    assert [job["live"] for job in alder.jobs(key)] == [True]
    assert (await alder.status(handle)).state in (RunState.SCHEDULED, RunState.RUNNING)


@pytest.mark.usefixtures("_no_run_is_young")
@pytest.mark.parametrize("fault", [GATEWAY, EMPTY], ids=["a gateway's page", "empty, and the job is listed"])
@pytest.mark.parametrize("answered", [0, 1], ids=["from the first request on", "from the second request on"])
@pytest.mark.parametrize("tracked", ["SCHEDULED", "RUNNING"])
async def test_a_404_for_a_live_job_submits_no_other(
    alder: UnicoreRoad, fault: dict[str, Any], answered: int, tracked: str
) -> None:
    key, control, ledger = new_key(), alder.sandbox.control, MemoryLedger()
    handle = await alder.submit(key)
    await acall(tracking_of(alder).set_status, str(handle.mlflow_run_id), tracked)
    control.reset_requests()
    control.add_fault(**fault, skip=answered, times=None)
    with pytest.raises((SubmitUnknown, ServiceUnavailable)):
        await alder.submit(key, if_ended="resubmit", ledger=ledger)
    assert posts(alder) == 0
    control.clear_faults()
    assert [job["id"] for job in alder.jobs(key)] == [handle.remote_id]
    assert await alder.submit(key, if_ended="resubmit", ledger=ledger) == handle


@pytest.mark.usefixtures("_no_run_is_young")
@pytest.mark.parametrize(
    ("fault", "state"),
    [(GATEWAY, RunState.UNKNOWN), (EMPTY, RunState.LOST)],
    ids=["a gateway's page", "empty"],
)
async def test_only_the_sites_own_404_says_that_an_unlisted_job_is_lost(
    alder: UnicoreRoad, fault: dict[str, Any], state: RunState
) -> None:
    """A gateway that does not reach the job may give a list from elsewhere, too."""
    key, control = new_key(), alder.sandbox.control
    handle = await alder.submit(key)
    control.add_fault(**fault, times=None)
    control.add_fault("status", route=JOBS, method="GET", status=200, body='{"jobs": []}', times=None)
    assert (await alder.status(handle)).state is state
    control.clear_faults()
    assert [job["live"] for job in alder.jobs(key)] == [True]


async def test_one_job_that_cannot_be_asked_does_not_hide_the_others_from_a_list(alder: UnicoreRoad) -> None:
    """Whoever cancels all runs of a flow run cancels what can be cancelled."""
    first = new_key("first")
    second = first.model_copy(update={"name": "second"})
    gone, there = await alder.submit(first), await alder.submit(second)
    url = f"{alder.url}/jobs/{gone.remote_id}".removeprefix(alder.sandbox.url)
    alder.sandbox.control.add_fault(**{**EMPTY, "route": url}, times=None)
    assert await acall(alder.open().list, first.prefix) == [there]


# --- Jobs that the site forgot --------------------------------------------------------------------------------------


async def ended_and_forgotten(road: UnicoreRoad, key: RunKey, spec: RunSpec) -> RunHandle:
    handle = await road.submit(key, spec)
    await road.until_ended(handle)
    forget(road, handle)
    road.sandbox.control.reset_requests()
    return handle


async def test_what_finished_and_was_forgotten_is_taken_as_it_is(alder: UnicoreRoad) -> None:
    key, spec = new_key(), alder.spec("silent")
    first = await ended_and_forgotten(alder, key, spec)
    again = await alder.submit(key, spec, if_ended="resubmit")
    assert again.mlflow_run_id == first.mlflow_run_id
    assert (again.key, again.attempt, again.spec_digest) == (key, 1, first.spec_digest)
    for handle in (first, again):
        status = await alder.status(handle)
        assert status.state is RunState.FINISHED
        assert "MLflow's word" in status.message
    await acall(alder.open().cancel, again)
    assert await acall(alder.open().read_log, again) == (b"", 0)
    assert posts(alder) == 0
    [run] = await runs_under(alder, key)
    assert run.status == "FINISHED"


async def test_what_failed_and_was_forgotten_has_ended_and_has_a_second_attempt(alder: UnicoreRoad) -> None:
    key, spec = new_key(), alder.spec("fail")
    first = await ended_and_forgotten(alder, key, spec)
    with pytest.raises(RunEnded, match='is FAILED.*if_ended="resubmit"'):
        await alder.submit(key, spec)
    assert posts(alder) == 0
    second = await alder.submit(key, spec, if_ended="resubmit")
    assert (second.attempt, posts(alder)) == (2, 1)
    assert second.mlflow_run_id != first.mlflow_run_id


async def forgotten_while_it_trained(road: UnicoreRoad, key: RunKey) -> RunHandle:
    handle = await road.submit(key)
    await acall(tracking_of(road).set_status, str(handle.mlflow_run_id), "RUNNING")
    forget(road, handle)
    road.sandbox.control.reset_requests()
    return handle


@pytest.mark.usefixtures("_no_run_is_young")
async def test_what_trained_when_it_was_forgotten_is_lost_and_never_submitted_silently(alder: UnicoreRoad) -> None:
    key = new_key()
    await forgotten_while_it_trained(alder, key)
    with pytest.raises(RunEnded, match="is LOST"):
        await alder.submit(key)
    assert posts(alder) == 0
    assert (await alder.submit(key, if_ended="resubmit")).attempt == 2


async def test_what_vanished_in_its_first_minutes_may_be_on_its_way(alder: UnicoreRoad) -> None:
    key = new_key()
    handle = await forgotten_while_it_trained(alder, key)
    assert (await alder.status(handle)).state is RunState.UNKNOWN
    with pytest.raises(SubmitUnknown, match="whether it has started is not known"):
        await alder.submit(key, if_ended="resubmit")
    assert posts(alder) == 0


async def test_an_mlflow_run_whose_submit_died_before_the_post_is_used_again(alder: UnicoreRoad) -> None:
    key, control = new_key(), alder.sandbox.control
    control.add_fault("drop_before", route=JOBS, method="POST")
    with pytest.raises(ServiceUnavailable):
        await acall(alder.open().post, alder.spec(), key, 1)
    [waiting] = await runs_under(alder, key)
    assert waiting.status == "SCHEDULED"
    handle = await alder.submit(key, ledger=MemoryLedger(key))
    assert handle.mlflow_run_id == waiting.run_id
    assert len(await runs_under(alder, key)) == 1
    assert len(alder.jobs(key)) == 1


# --- What is left under a key that finished -------------------------------------------------------------------------


async def test_a_finished_job_is_taken_and_the_leftover_is_cancelled(
    alder: UnicoreRoad, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process submitted the key too, and died after its POST."""
    key, spec = new_key(), alder.spec("silent")
    done = await alder.submit(key, spec)
    assert (await alder.until_ended(done)).state is RunState.FINISHED
    left = await acall(alder.open().post, spec, key, 1)
    with caplog.at_level(logging.ERROR):
        assert await alder.submit(key, spec) == done
    assert f"finished, and another job of key '{key.name}' is live, {left}: it is cancelled" in caplog.text
    for _ in range(50):
        if not any(job["live"] for job in alder.jobs(key)):
            break
        await asyncio.sleep(0.1)
    statuses = {job["id"]: job["status"] for job in alder.jobs(key)}
    assert statuses == {done.remote_id: "SUCCESSFUL", left: "FAILED"}
    found = {run.run_id: run.status for run in await runs_under(alder, key)}
    assert found[str(done.mlflow_run_id)] == "FINISHED"
    assert sorted(found.values()) == ["FINISHED", "KILLED"]
    caplog.clear()
    assert await alder.submit(key, spec) == done
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- A server that does not search by tags --------------------------------------------------------------------------


@pytest.fixture
def _tags_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server lists all jobs of the account, whatever tags it is asked for."""
    listed = UnicoreClient.jobs

    async def all_jobs(client: UnicoreClient, *_: str) -> list[str]:
        return await listed(client)

    monkeypatch.setattr(UnicoreClient, "jobs", all_jobs)


@pytest.mark.usefixtures("_tags_are_left_out")
async def test_a_server_that_ignores_tags_does_not_mix_up_runs(alder: UnicoreRoad) -> None:
    strange = await acall(
        cast("DirectUnicoreSite", alder.open())._client.submit, {"haveClientStageIn": "true", "Tags": ["somebodys"]}
    )
    mine, other, new = new_key("mine"), new_key("other"), new_key("new")
    first, second = await alder.submit(mine), await alder.submit(other)
    assert await acall(alder.open().find, mine) == [first]
    assert await acall(alder.open().find, new) == []
    assert await acall(alder.open().list, mine.prefix) == [first]
    assert await alder.submit(mine) == first
    third = await alder.submit(new)
    assert third not in (first, second)
    for key in (mine, other, new):
        assert [job["live"] for job in alder.jobs(key)] == [True]
    assert [job["live"] for job in alder.jobs(RunKey(name="x", scope="origin", origin=mine.origin))] == []
    with alder._http() as http:
        assert http.get(f"{alder.url}/jobs/{strange}").json()["status"] == "READY"


@pytest.mark.usefixtures("_tags_are_left_out")
async def test_a_server_that_ignores_tags_has_only_the_keys_own_leftovers_cancelled(alder: UnicoreRoad) -> None:
    key, other, spec = new_key(), new_key(), alder.spec("silent")
    kept = await alder.submit(other)
    await acall(alder.open().post, spec, key, 1)
    await asyncio.sleep(1.1)  # the site's clock counts seconds
    await acall(alder.open().post, spec, key, 1)
    handle = await alder.submit(key, spec)
    assert handle.site_key == key.site_key
    assert len(alder.jobs(key)) == 2
    assert [job["live"] for job in alder.jobs(other)] == [True]
    status = await alder.status(kept)
    assert status.reason is not Reason.CANCELLED_BY_US
    assert not status.state.is_end
