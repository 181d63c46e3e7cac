"""Submits to a UNICORE site: few requests, one job, and the site's own words where it says no."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest

from prefect_mantik.errors import (
    KeyInUse,
    NotFound,
    RunEnded,
    ServiceUnavailable,
    SubmitIncomplete,
    SubmitRefused,
    SubmitUnknown,
)
from prefect_mantik.loop import acall
from prefect_mantik.runs import Reason, RunHandle, RunKey, RunSpec, RunState
from prefect_mantik.sites import submission
from prefect_mantik.sites.unicore.directory import RunDirectory
from prefect_mantik.sites.unicore.site import DirectUnicoreSite
from tests.contract.conftest import PlatformRoad, UnicoreRoad
from tests.sandbox_jobs import MemoryLedger, new_key

BASE = "/{site}/rest/core"
JOBS = f"{BASE}/jobs"
START = f"{JOBS}/{{jobId}}/actions/{{action}}"
FILES = f"{BASE}/storages/{{storageId}}/files/{{path}}"
PAGE = "<html><head><title>Bad Gateway</title></head></html>"


@pytest.fixture
def alder(sandbox_unicore_road: UnicoreRoad) -> Iterator[UnicoreRoad]:
    """The sandbox's site, whose switches are put back."""
    control = sandbox_unicore_road.sandbox.control
    control.reset_requests()
    yield sandbox_unicore_road
    control.change_site("alder", maintenance=False, message="", quota_full=False)
    control.switch(unicore_projects="", unicore_list_lag=0.0)


def direct(road: UnicoreRoad, **fields: Any) -> DirectUnicoreSite:
    """The site, as another process would open it."""
    return cast("DirectUnicoreSite", road.open(**fields))


def started(road: UnicoreRoad) -> int:
    """How many jobs were told to start."""
    return road.sandbox.control.count(route=START, method="POST")


def changed(spec: RunSpec, **resources: Any) -> RunSpec:
    """The same description with other resources."""
    config = {**spec.backend_config, "Resources": {**spec.backend_config["Resources"], **resources}}
    return spec.model_copy(update={"backend_config": config})


# --- Requests -------------------------------------------------------------------------------------------------------


async def test_a_submit_costs_the_site_four_requests_and_the_staging(alder: UnicoreRoad) -> None:
    control = alder.sandbox.control
    await acall(alder.open().list)  # logs in
    control.reset_requests()
    await alder.submit(new_key())
    asked = {
        (entry["method"], entry["route"].removeprefix(BASE)): entry["count"]
        for entry in control.requests()
        if entry["route"].startswith(f"{BASE}/")
    }
    staging = {call: count for call, count in asked.items() if call[1].startswith("/storages/")}
    assert {call: count for call, count in asked.items() if call not in staging} == {
        ("GET", "/jobs"): 2,
        ("POST", "/jobs"): 1,
        ("POST", "/jobs/{jobId}/actions/{action}"): 1,
    }
    assert sum(staging.values()) <= 8


async def test_a_found_job_costs_the_site_four_requests(alder: UnicoreRoad) -> None:
    key, control = new_key(), alder.sandbox.control
    handle = await alder.submit(key)
    await alder.until(handle, RunState.RUNNING)
    control.reset_requests()
    await alder.submit(key)
    asked = sum(entry["count"] for entry in control.requests() if entry["route"].startswith(BASE))
    assert asked <= 4
    assert control.count(route=JOBS, method="POST") == 0


# --- A submit that was cut short ------------------------------------------------------------------------------------


async def killed_after_the_post(road: UnicoreRoad, key: RunKey, spec: RunSpec | None = None) -> str:
    """The site took the job, and whoever sent it is gone."""
    return await acall(direct(road).post, spec or road.spec("main", epochs=1), key, 1)


async def test_a_job_that_was_taken_and_not_started_is_completed_once(unicore_road: UnicoreRoad) -> None:
    road, key = unicore_road, new_key()
    spec = road.spec("main", epochs=1)
    job = await killed_after_the_post(road, key, spec)
    await asyncio.sleep(1)
    assert [found["status"] for found in road.jobs(key)] == ["READY"]
    handle = await road.submit(key, spec, ledger=MemoryLedger(key))
    assert handle.remote_id == job
    assert (await road.until_ended(handle)).state is RunState.FINISHED
    assert len(road.jobs(key)) == 1


async def test_a_job_that_was_taken_a_moment_ago_is_completed(alder: UnicoreRoad) -> None:
    """Its files are still on their way into its directory, and then it is not READY."""
    key, spec = new_key(), alder.spec("silent")
    job = await killed_after_the_post(alder, key, spec)
    handle = await alder.submit(key, spec)
    assert handle.remote_id == job
    assert started(alder) == 1
    assert (await alder.until_ended(handle)).state is RunState.FINISHED


@pytest.mark.parametrize("status", ["STAGINGIN", "CREATED", "READY"])
async def test_a_job_is_completed_in_whatever_state_it_waits(alder: UnicoreRoad, status: str) -> None:
    key, spec = new_key(), alder.spec("silent")
    job = await killed_after_the_post(alder, key, spec)
    url = f"{alder.url}/jobs/{job}".removeprefix(alder.sandbox.url)
    site = direct(alder)
    [handle] = await acall(site.find, key)
    alder.sandbox.control.add_fault("status", route=url, method="GET", status=200, body=f'{{"status": "{status}"}}')
    await acall(site.complete, spec, handle)
    assert started(alder) == 1


async def test_a_job_that_runs_is_not_completed_again(alder: UnicoreRoad) -> None:
    key = new_key()
    handle = await alder.submit(key)
    await alder.until(handle, RunState.RUNNING)
    alder.sandbox.control.reset_requests()
    assert await alder.submit(key) == handle
    assert started(alder) == 0
    assert alder.sandbox.control.count(route=FILES, method="PUT") == 0


async def test_two_processes_complete_one_job(alder: UnicoreRoad, monkeypatch: pytest.MonkeyPatch) -> None:
    key, spec = new_key(), alder.spec("main", epochs=1)
    job = await killed_after_the_post(alder, key, spec)
    monkeypatch.setattr(submission, "_turn", lambda _: asyncio.Lock())
    handles = await asyncio.gather(*(alder.submit(key, spec) for _ in range(2)))
    assert {handle.remote_id for handle in handles} == {job}
    assert (await alder.until_ended(handles[0])).state is RunState.FINISHED


async def test_two_submitters_of_one_key_at_the_same_instant(
    alder: UnicoreRoad, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In two processes. The older job stays, the younger one is cancelled, and that is said."""
    key, spec = new_key(), alder.spec("sleep", seconds=4)
    monkeypatch.setattr(submission, "_turn", lambda _: asyncio.Lock())
    alder.sandbox.control.add_fault("delay_before", route=JOBS, method="POST", seconds=1.2, times=2)
    with caplog.at_level(logging.ERROR):
        first, second = await asyncio.gather(*(alder.submit(key, spec) for _ in range(2)))
    jobs = {job["id"]: job for job in alder.jobs(key)}
    assert len(jobs) == 2
    assert first == second
    assert [job["live"] for job in jobs.values()].count(True) == 1
    assert jobs[first.remote_id]["live"]
    [other] = set(jobs) - {first.remote_id}
    assert f"had another live job under key '{key.name}': {other} is cancelled, {first.remote_id} stays" in caplog.text
    assert (await alder.until_ended(first)).state is RunState.FINISHED
    assert await alder.submit(key, spec) == first


async def test_the_mlflow_run_that_two_jobs_share_stays_the_older_ones(alder: UnicoreRoad) -> None:
    """Cancelling the younger job must not close it."""
    key, spec = new_key(), alder.spec("sleep")
    await killed_after_the_post(alder, key, spec)
    await asyncio.sleep(1.1)  # the site's clock counts seconds
    await killed_after_the_post(alder, key, spec)
    handle = await alder.submit(key, spec)
    tracking = alder.job().project.credentials.tracking_client()
    run = await acall(tracking.run, str(handle.mlflow_run_id))
    assert run is not None
    assert run.status in ("SCHEDULED", "RUNNING")
    assert sorted(job["live"] for job in alder.jobs(key)) == [False, True]


# --- A list that is late, answers that are none ---------------------------------------------------------------------


async def test_a_job_that_surfaces_late_in_the_list_is_waited_for(alder: UnicoreRoad) -> None:
    key = new_key()
    alder.sandbox.control.switch(unicore_list_lag=0.8)
    handle = await alder.submit(key)
    assert [job["id"] for job in alder.jobs(key)] == [handle.remote_id]
    assert started(alder) == 1


async def test_a_job_that_surfaces_too_late_is_never_submitted_twice(alder: UnicoreRoad) -> None:
    key, ledger, control = new_key(), MemoryLedger(), alder.sandbox.control
    control.switch(unicore_list_lag=5)
    with pytest.raises(SubmitUnknown, match="took the run under key .*, as .*, but does not show it after 1 s"):
        await alder.submit(key, ledger=ledger)
    [note] = ledger.notes.values()
    with pytest.raises(SubmitUnknown, match=f"took the run .* earlier, as {note.receipt}.*nothing was submitted"):
        await alder.submit(key, ledger=ledger)
    for _ in range(100):
        if alder.jobs(key):
            break
        await asyncio.sleep(0.1)
    handle = await alder.submit(key, ledger=ledger)
    assert handle.remote_id == note.receipt
    assert len(alder.jobs(key)) == 1
    assert started(alder) == 1
    assert ledger.pending == {}


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 502, "body": PAGE, "content_type": "text/html"},
        {"status": 504, "body": PAGE, "content_type": "text/html"},
        {"status": 500, "body": PAGE, "content_type": "text/html"},
        {"status": 503, "body": PAGE, "content_type": "text/html"},
        {"status": 503, "body": "", "content_type": "text/plain"},
        {"status": 503, "body": "upstream connect error", "content_type": "text/plain"},
    ],
    ids=["502", "504", "500 page", "503 page", "503 empty", "503 of a proxy"],
)
async def test_the_answer_of_a_gateway_leaves_it_open(alder: UnicoreRoad, fault: dict[str, Any]) -> None:
    """The job surfaces later: it is looked for, and is the only one."""
    key, control = new_key(), alder.sandbox.control
    control.add_fault("late", route=JOBS, method="POST", seconds=0.5, **fault)
    handle = await alder.submit(key)
    assert [job["id"] for job in alder.jobs(key)] == [handle.remote_id]
    assert control.count(route=JOBS, method="POST") <= 2


# --- Refusals -------------------------------------------------------------------------------------------------------


async def refused(road: UnicoreRoad) -> str:
    key, ledger = new_key(), MemoryLedger()
    with pytest.raises(SubmitRefused) as caught:
        await road.submit(key, ledger=ledger)
    assert ledger.pending == {}
    assert road.jobs(key) == []
    return str(caught.value)


async def test_500_in_the_sites_own_words_is_a_refusal(alder: UnicoreRoad) -> None:
    words = "Could not submit job: org.json.JSONException: no such thing"
    body = f'{{"errorMessage": "{words}", "status": 500}}'
    alder.sandbox.control.add_fault("status", route=JOBS, method="POST", status=500, body=body)
    assert words in await refused(alder)


async def test_500_in_the_sites_own_words_is_no_refusal_where_there_is_a_job(alder: UnicoreRoad) -> None:
    key = new_key()
    await killed_after_the_post(alder, key)
    alder.sandbox.control.add_fault("status", route=JOBS, method="POST", status=500)
    with pytest.raises(ServiceUnavailable) as caught:
        await killed_after_the_post(alder, key)
    assert caught.value.sent


async def test_maintenance_is_a_refusal_in_the_sites_own_words(alder: UnicoreRoad) -> None:
    alder.sandbox.control.change_site("alder", maintenance=True, message="Closed until Monday.")
    assert "Closed until Monday" in await refused(alder)
    findings = await acall(alder.open().check)
    assert [finding for finding in findings if not finding.ok and "Closed until Monday." in finding.message]


@pytest.mark.slow
@pytest.mark.unicore
async def test_maintenance_at_a_real_server(unicore_server: Any, mantik_sandbox: Any) -> None:
    from tests.contract.conftest import real_unicore

    road = real_unicore(mantik_sandbox, unicore_server)
    toggle = unicore_server.url.replace("/rest/core", "/rest/admin/actions/ToggleJobSubmission")
    with unicore_server.client("boss") as boss:
        boss.post(toggle, json={"message": "Closed until Monday."}).raise_for_status()
        try:
            assert "Closed until Monday" in await refused(road)
        finally:
            boss.post(toggle, json={"message": ""}).raise_for_status()


async def test_a_job_that_is_not_allowed_is_refused(alder: UnicoreRoad) -> None:
    alder.sandbox.control.add_fault("status", route=JOBS, method="POST", status=403)
    assert "does not allow this to" in await refused(alder)


LATE = [
    ({"Queue": "nope"}, "Resource request <Queue = nope> is out of range."),
    ({"Nodes": 99}, "Resource request <Nodes=99> is out of range."),
]


@pytest.mark.parametrize(("resources", "words"), LATE, ids=["queue", "nodes"])
async def test_what_the_site_refuses_late_is_a_result_with_its_words(
    unicore_road: UnicoreRoad, resources: dict[str, Any], words: str
) -> None:
    """It answers 201, and looks at the description afterwards."""
    road, key = unicore_road, new_key()
    spec = changed(road.spec("silent"), **resources)
    handle = await road.submit(key, spec)
    status = await road.until_ended(handle, seconds=20)
    assert (status.state, status.reason) == (RunState.FAILED, Reason.REFUSED)
    assert words in status.message
    with pytest.raises(RunEnded, match="REFUSED"):
        await road.submit(key, spec)
    assert len(road.jobs(key)) == 1


async def test_an_unknown_project_is_refused_late(alder: UnicoreRoad) -> None:
    alder.sandbox.control.switch(unicore_projects="another")
    handle = await alder.submit(new_key(), alder.spec("silent"))
    status = await alder.until_ended(handle)
    assert (status.state, status.reason) == (RunState.FAILED, Reason.REFUSED)
    assert "Invalid account" in status.message


# --- Files that do not arrive ---------------------------------------------------------------------------------------


async def incomplete(road: UnicoreRoad, key: RunKey, spec: RunSpec, ledger: MemoryLedger) -> str:
    with pytest.raises(SubmitIncomplete, match="waits there for its files: nothing runs") as caught:
        await asyncio.wait_for(road.submit(key, spec, ledger=ledger), 30)
    return str(caught.value)


async def test_a_full_disk_is_told_and_the_next_submit_goes_on(alder: UnicoreRoad) -> None:
    key, ledger, control = new_key(), MemoryLedger(), alder.sandbox.control
    spec = alder.spec("main", epochs=1)
    words = "Error uploading to '/x': java.io.IOException: Disk quota exceeded"
    body = f'{{"errorMessage": "{words}", "status": 500}}'
    control.add_fault("status", route=FILES, method="PUT", status=500, body=body, times=None)
    said = await incomplete(alder, key, spec, ledger)
    assert words in said
    assert "Submit again under the same key to go on, or cancel it." in said
    [waiting] = alder.jobs(key)
    assert waiting["status"] == "READY"
    control.clear_faults()
    handle = await alder.submit(key, spec, ledger=ledger)
    assert handle.remote_id == waiting["id"]
    assert (await alder.until_ended(handle)).state is RunState.FINISHED
    assert (len(alder.jobs(key)), started(alder), ledger.pending) == (1, 1, {})


async def test_a_disk_that_is_full_before_the_job_has_a_directory(alder: UnicoreRoad) -> None:
    """The site fails such a job at once: there is nothing to wait for."""
    key, control = new_key(), alder.sandbox.control
    control.change_site("alder", quota_full=True)
    spec = alder.spec("silent")
    handle = await asyncio.wait_for(alder.submit(key, spec), 6)
    status = await alder.until_ended(handle)
    assert status.state is RunState.FAILED
    assert "Disk quota exceeded" in status.message


async def test_a_start_that_is_not_answered_is_repeated(alder: UnicoreRoad) -> None:
    alder.sandbox.control.add_fault("drop_before", route=START, method="POST")
    handle = await alder.submit(new_key(), alder.spec("silent"))
    assert (await alder.until_ended(handle)).state is RunState.FINISHED


async def test_an_incomplete_submit_can_be_cancelled(alder: UnicoreRoad) -> None:
    key, control = new_key(), alder.sandbox.control
    control.add_fault("status", route=FILES, method="PUT", status=500, times=None)
    await incomplete(alder, key, alder.spec("silent"), MemoryLedger())
    [handle] = await acall(alder.open().find, key)
    await acall(alder.open().cancel, handle)
    status = await alder.until_ended(handle)
    assert (status.state, status.reason) == (RunState.KILLED, Reason.CANCELLED_BY_US)


# --- A key at another site ------------------------------------------------------------------------------------------


def platform(road: UnicoreRoad) -> PlatformRoad:
    return PlatformRoad(road.sandbox, frozenset())


async def test_a_key_of_a_run_on_the_platform_is_in_use(alder: UnicoreRoad) -> None:
    key, ledger = new_key(), MemoryLedger()
    other = platform(alder)
    await other.submit(key, other.spec("silent"))
    with pytest.raises(KeyInUse, match=f"Key '{key.name}' belongs to a run at .*, not at .*Use another key"):
        await alder.submit(key, alder.spec("silent"), ledger=ledger)
    assert alder.jobs(key) == []
    assert ledger.pending == {}
    other.end_jobs()


async def test_a_key_of_a_direct_run_is_in_use_on_the_platform(alder: UnicoreRoad) -> None:
    key, ledger = new_key(), MemoryLedger()
    await alder.submit(key)
    other = platform(alder)
    with pytest.raises(KeyInUse, match=f"'{key.name}'") as caught:
        await other.submit(key, other.spec("silent"), ledger=ledger)
    assert re.search(r"unicore|UNICORE|ALDER", str(caught.value))
    assert other.jobs(key) == []
    assert len(alder.jobs(key)) == 1


async def test_a_key_of_another_direct_site_is_in_use(alder: UnicoreRoad) -> None:
    key = new_key()
    await alder.submit(key)
    birch = UnicoreRoad(
        alder.sandbox,
        alder.claims,
        url=alder.sandbox.env["MANTIK_SANDBOX_BIRCH_URL"],
        username=alder.username,
        password=alder.password,
    )
    with pytest.raises(KeyInUse, match="not at BIRCH"):
        await birch.submit(key)
    assert birch.jobs(key) == []


async def test_the_ledger_keeps_what_the_site_called_the_job(alder: UnicoreRoad) -> None:
    key, ledger, control = new_key(), MemoryLedger(), alder.sandbox.control
    control.add_fault("status", route=FILES, method="PUT", status=500, times=None)
    await incomplete(alder, key, alder.spec("silent"), ledger)
    [job] = alder.jobs(key)
    assert [(note.attempt, note.receipt) for note in ledger.pending.values()] == [(1, job["id"])]


def test_a_handle_has_the_jobs_address_and_the_mlflow_link(alder: UnicoreRoad) -> None:
    handle: RunHandle = asyncio.run(_submitted(alder))
    assert handle.links["UNICORE"] == f"{alder.url}/jobs/{handle.remote_id}"
    assert handle.mlflow_run_id
    assert handle.mlflow_run_id in handle.links["MLflow"]
    assert httpx.URL(handle.links["UNICORE"]).userinfo == b""


async def _submitted(road: UnicoreRoad) -> RunHandle:
    return await road.submit(new_key())


async def test_tags_are_of_signs_that_no_server_takes_for_wildcards(unicore_road: UnicoreRoad) -> None:
    """`_` and `%` match anything in a search, and blanks and commas part tags."""
    key = new_key("Größe_1 100%, two words")
    handle = await unicore_road.submit(key)
    [job] = unicore_road.jobs(key)
    assert [tag for tag in job["tags"] if not re.fullmatch(r"[A-Za-z0-9-]+", tag)] == []
    assert {key.site_key, key.prefix.rstrip("-"), "prefect-mantik"} <= {tag.rstrip("-") for tag in job["tags"]}
    assert await acall(unicore_road.open().find, key) == [handle]


async def test_what_the_server_puts_into_its_own_script_is_plain_words(unicore_road: UnicoreRoad) -> None:
    """It writes the executable twice, within quotes and without, and the environment unquoted."""
    key = new_key()
    handle = await unicore_road.submit(key)
    with unicore_road._http() as http:
        sent = http.get(f"{unicore_road.url}/jobs/{handle.remote_id}/submitted").raise_for_status().json()
    assert (sent["Executable"], sent["Arguments"]) == ("/bin/bash", ["mantik.sh"])
    assert "Environment" not in sent
    assert {item["Data"] for item in sent["Imports"]} == {"n/a"}
    assert sent["haveClientStageIn"] == "true"


async def test_nobody_waits_for_the_files_of_a_job_that_ended_without_them(alder: UnicoreRoad) -> None:
    client = alder.site().client()
    imports = [{"From": "inline://first", "To": "first", "Data": "x"}, {"To": "../second", "Data": "x"}]

    async def names() -> set[str]:
        job = await client.submit({"Executable": "true", "Imports": imports, "haveClientStageIn": "true"})
        return await RunDirectory(client, job).names()

    with pytest.raises(NotFound, match="ended before its files were there"):
        await acall(names)
