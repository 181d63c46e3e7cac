"""Submitting to FirecREST sites and asking them: few requests, answers that mislead, jobs that lists leave out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import pytest

from prefect_mantik import FirecrestCredentials, MantikConnection
from prefect_mantik.api import impatient
from prefect_mantik.errors import ConfigurationError, LoginRefused, RunEnded, SubmitRefused, SubmitUnknown
from prefect_mantik.firecrest import client as client_module
from prefect_mantik.loop import acall
from prefect_mantik.runs import Reason, RunHandle, RunState
from prefect_mantik.sandbox.process import SandboxControl
from prefect_mantik.sites.firecrest import jobs as jobs_module, site as site_module
from tests.contract.conftest import FirecrestRoad, sandbox_unicore
from tests.contract.running import tracked, uuid_of
from tests.sandbox_jobs import credentials, new_key

API = "/firecrest/v2"
JOBS = f"{API}/compute/{{system}}/jobs"
JOB = f"{JOBS}/{{jobId}}"
DAY = 86400
POISON = "#!/bin/bash\n#SBATCH -J 'a|b'\n#SBATCH -p batch\nsleep 30\n"
LATE = '{"errorType":"error","message":"Command execution timeout limit exceeded.","causedBy":null}'
GONE = '{"errorType": "error", "message": "Job not found.", "causedBy": null, "data": null, "user": "sandbox-at-cedar"}'


@pytest.fixture
def road(firecrest_road: FirecrestRoad) -> Iterator[FirecrestRoad]:
    """Both modes, asked by nobody in this process yet; what a test does to the site is undone."""
    forget()
    control = control_of(firecrest_road)
    yield firecrest_road
    control.change_site("cedar", unhealthy=False, accounting_down=False, entitled=True, refuse_logins=False)
    control.switch(firecrest_max_sessions=0, firecrest_command_time=0.0, firecrest_token_lifetime=300.0)
    control.clear_faults()
    forget()


def forget() -> None:
    """What this process knows of logins and warnings."""
    for cached in (client_module.firecrest_client, jobs_module._warn):
        cast("Any", cached).cache_clear()


def control_of(road: FirecrestRoad) -> SandboxControl:
    return road.sandbox.control


def asked(road: FirecrestRoad) -> list[tuple[str, str, int]]:
    """Requests about jobs since the counts were reset: method, route, number."""
    return [
        (found["method"], found["route"], found["count"])
        for found in control_of(road).requests()
        if "/compute/" in found["route"]
    ]


# --- Few requests ---------------------------------------------------------------------------------------------------


async def test_a_submit_is_look_post_look(road: FirecrestRoad) -> None:
    control_of(road).reset_requests()
    await road.submit(new_key())
    assert sorted(asked(road)) == [("GET", JOBS, 2), ("POST", JOBS, 1)]


async def test_any_number_of_jobs_is_asked_in_one_request(road: FirecrestRoad) -> None:
    handles = [await road.submit(new_key()) for _ in range(5)]
    site = road.open()
    control_of(road).reset_requests()
    statuses = await acall(site.poll, handles)
    assert {status.state for status in statuses.values()} <= {RunState.SCHEDULED, RunState.RUNNING}
    assert asked(road) == [("GET", JOBS, 1)]


async def test_a_job_that_the_list_leaves_out_is_asked_by_id(ssh_road: FirecrestRoad) -> None:
    """Slurm's accounting does not list what was cancelled before it could start."""
    other, site = await ssh_road.submit(new_key()), ssh_road.open()
    client = site._client  # type: ignore[attr-defined]
    script = "#!/bin/bash\n#SBATCH --begin=now+1hour\n#SBATCH -p batch\ntrue\n"
    fields = {"name": f"{other.site_key}-1"}
    handle = other.model_copy(update={"remote_id": await acall(client.submit, script, ssh_road.site().root, fields)})
    await acall(site.cancel, handle)
    control_of(ssh_road).reset_requests()
    statuses = await acall(site.poll, [handle, other])
    assert (statuses[handle].state, statuses[handle].reason) == (RunState.KILLED, Reason.CANCELLED_BY_US)
    assert statuses[handle].started_at is None
    assert asked(ssh_road) == [("GET", JOBS, 1), ("GET", JOB, 1)]


@pytest.mark.parametrize(
    ("age", "requests"), [(0.5, {JOBS: 1}), (2, {JOBS: 1}), (6, {JOBS: 1}), (8, {JOBS: 1, JOB: 1})]
)
async def test_the_window_of_the_list_is_as_wide_as_needed(
    road: FirecrestRoad, age: float, requests: dict[str, int]
) -> None:
    handle = await road.submit(new_key(), road.spec("fail"))
    await road.until_ended(handle)
    control_of(road).age_job(uuid_of(road, handle), age * DAY)
    assert handle.submitted_at is not None
    old = handle.model_copy(update={"submitted_at": handle.submitted_at - timedelta(days=age)})
    control_of(road).reset_requests()
    status = (await acall(road.open().poll, [old]))[old]
    assert (status.state, status.reason) == (RunState.FAILED, Reason.EXIT_CODE)
    assert {route: count for _, route, count in asked(road)} == requests


# --- Found again ----------------------------------------------------------------------------------------------------


async def test_a_job_of_long_ago_is_proved_by_its_directory(road: FirecrestRoad) -> None:
    """It trained without a word to MLflow, so that nothing but its directory tells of it."""
    key = new_key()
    handle = await road.submit(key, road.spec("fail"))
    await road.until_ended(handle)
    control_of(road).age_job(uuid_of(road, handle), 8 * DAY)
    tracking = road.job().project.credentials.tracking_client()
    await acall(tracking.set_status, str(handle.mlflow_run_id), "SCHEDULED", None)
    with pytest.raises(RunEnded, match="attempt|is FAILED"):
        await road.submit(key, road.spec("fail"))
    again = await road.submit(key, road.spec("fail"), if_ended="resubmit")
    assert again.attempt == 2
    assert len(road.jobs(key)) == 2


async def test_a_finished_run_of_long_ago_is_taken_as_it_is(road: FirecrestRoad) -> None:
    key = new_key()
    handle = await road.submit(key, road.spec("main", epochs=1))
    assert (await road.until_ended(handle)).state is RunState.FINISHED
    control_of(road).age_job(uuid_of(road, handle), 8 * DAY)
    found = await road.submit(key, road.spec("main", epochs=1))
    assert found.mlflow_run_id == handle.mlflow_run_id
    assert (await road.status(found)).state is RunState.FINISHED
    assert len(road.jobs(key)) == 1


async def test_a_handle_made_from_the_list_is_whole(road: FirecrestRoad) -> None:
    key = new_key("Die erste | Zeile")
    handle = await road.submit(key)
    [found] = await acall(road.open().list, key.prefix)
    for name in ("site_key", "attempt", "spec_digest", "mlflow_run_id", "mlflow_experiment_id", "platform_project_id"):
        assert getattr(found, name) == getattr(handle, name)
    assert found.name == key.slug


async def test_two_submitters_at_the_same_instant_leave_one_job(road: FirecrestRoad) -> None:
    key, spec = new_key(), road.spec()
    await asyncio.gather(*(acall(road.open().post, spec, key, 1) for _ in range(2)))
    kept = await road.submit(key, spec)
    live = [job for job in road.jobs(key) if job["live"]]
    for _ in range(50):
        live = [job for job in road.jobs(key) if job["live"]]
        if len(live) == 1:
            break
        await asyncio.sleep(0.1)
    assert [job["id"] for job in live] == [kept.remote_id]
    assert int(kept.remote_id) == min(int(job["id"]) for job in road.jobs(key))


async def test_a_job_of_the_same_number_is_not_taken_for_ours(road: FirecrestRoad) -> None:
    """Batch systems may begin to count anew."""
    mine, other = await road.submit(new_key()), await road.submit(new_key())
    mistaken = mine.model_copy(update={"remote_id": other.remote_id})
    await acall(road.open().cancel, mistaken)
    status = (await acall(road.open().poll, [mistaken]))[mistaken]
    assert (status.state, status.site_word) == (
        RunState.UNKNOWN,
        f"{road.open().name} has no job {other.remote_id} of this run",
    )
    assert len(control_of(road).jobs(live=True)) == 2


async def test_an_attempt_that_was_cancelled_unseen_is_not_made_again(road: FirecrestRoad) -> None:
    """Lists leave out what was cancelled before it could start; MLflow knows of it."""
    key = new_key()
    first = await road.submit(key, road.spec("fail"))
    await road.until_ended(first)
    second = await road.submit(key, road.spec("fail"), if_ended="resubmit")
    await acall(road.open().cancel, second)
    await road.until_ended(second)
    control_of(road).age_job(uuid_of(road, second), 8 * DAY)
    with pytest.raises(RunEnded, match="cancelled by us"):
        await road.submit(key, road.spec("fail"), if_ended="resubmit")
    assert len(road.jobs(key)) == 2


# --- Cancelling while something else is out of order ------------------------------------------------------------------


FILES = f"{API}/filesystem/*"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"route": FILES, "status": 503}, id="the file system"),
        pytest.param({"method": "GET", "route": JOB, "status": 503}, id="what the site says of a job"),
        pytest.param({"method": "GET", "route": JOB, "status": 404, "body": GONE}, id="and it denies the job"),
    ],
)
async def test_a_cancel_reaches_the_job_whatever_else_is_down(
    road: FirecrestRoad, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    monkeypatch.setattr(jobs_module, "_AT_ONCE", 0.5)
    key = new_key()
    handle = await road.submit(key)
    control_of(road).add_fault("status", **{"times": None, **fault})
    began = time.monotonic()
    await acall(road.open().cancel, handle)
    assert time.monotonic() - began < 15
    for _ in range(50):
        if not any(job["live"] for job in road.jobs(key)):
            break
        await asyncio.sleep(0.1)
    assert [job["live"] for job in road.jobs(key)] == [False]


async def test_listing_does_not_wait_for_a_file_system(road: FirecrestRoad, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_module, "_RECORDS_TIMEOUT", 0.5)
    key = new_key()
    handle = await road.submit(key)
    control_of(road).add_fault("status", route=FILES, status=503, times=None)
    [found] = await acall(road.open().list, key.prefix)
    assert (found, found.mlflow_run_id, found.site_key) == (handle, handle.mlflow_run_id, handle.site_key)


async def test_uploads_leave_a_slot_for_what_is_asked_meanwhile(road: FirecrestRoad) -> None:
    handle = await road.submit(new_key())
    store = road.open().store(handle)
    control_of(road).add_fault("delay_after", route=f"{API}/filesystem/{{system}}/ops/upload", seconds=4, times=4)
    uploads = [asyncio.create_task(acall(store.write, f"/file-{number}", b"content")) for number in range(4)]
    await asyncio.sleep(0.5)
    began = time.monotonic()
    assert (await acall(road.open().poll, [handle]))[handle].state is not RunState.UNKNOWN
    assert time.monotonic() - began < 2.5
    await asyncio.gather(*uploads)


# --- Answers that mislead -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message"),
    [(500, "('Channel not open for sending',)"), (408, "Command execution timeout limit exceeded.")],
)
async def test_a_submit_that_was_too_slow_to_say_so(
    road: FirecrestRoad, status: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = f'{{"errorType":"error","message":"{message}","causedBy":null,"data":null,"user":null}}'
    control_of(road).add_fault("status_after", **road.post, status=status, body=body)
    key = new_key()
    handle = await road.submit(key)
    assert [job["id"] for job in road.jobs(key)] == [handle.remote_id]
    assert "did not say whether it did this" in caplog.text


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (424, "SSH connection Reset."),
        (
            500,
            "Unexpected Slurm command response. exit_status:1 std_err:sbatch: error: Batch job submission failed: "
            "Unable to contact slurm controller (receive failure)",
        ),
    ],
)
async def test_a_connection_that_ended_while_sbatch_ran_leaves_one_job(
    road: FirecrestRoad, status: int, message: str
) -> None:
    """The job shows only after a while."""
    body = f'{{"errorType":"error","message":"{message}","causedBy":null,"data":null,"user":null}}'
    control_of(road).add_fault("late", **road.post, seconds=2, status=status, body=body)
    key = new_key()
    site = road.site(settle=8).open(road.job().project)
    handle = await road.submit(key, site=site)
    await asyncio.sleep(4)  # longer than the job needs to show, also had it been sent twice at once
    assert [job["id"] for job in road.jobs(key)] == [handle.remote_id]


async def test_a_directory_that_cannot_be_asked_is_no_submit(road: FirecrestRoad) -> None:
    forget()
    control_of(road).add_fault("status", route=f"{API}/filesystem/*", status=502, times=None)
    key = new_key()
    with impatient(0.5), pytest.raises(SubmitRefused, match="Nothing was submitted.*could not be prepared"):
        await road.submit(key)
    control_of(road).clear_faults()
    assert control_of(road).count(method="POST", route=JOBS) == 0 or road.jobs(key) == []


async def test_a_refusal_after_an_unclear_answer_leaves_the_runs_records_alone(road: FirecrestRoad) -> None:
    """The first job is there, and MLflow's run is its own."""
    refusal = '{"errorType":"error","message":"job submit limit","causedBy":null,"data":null,"user":null}'
    control_of(road).add_fault("late", **road.post, seconds=4, status=408, body=LATE)
    control_of(road).add_fault("status", **road.post, status=403, body=refusal)
    key = new_key()
    with pytest.raises(SubmitUnknown):
        await road.submit(key)
    await asyncio.sleep(4)
    handle = await road.submit(key)
    assert [job["id"] for job in road.jobs(key)] == [handle.remote_id]
    assert "prefect_mantik.refused" not in (await tracked(road, handle)).tags
    assert (await tracked(road, handle)).status != "FAILED"


async def test_other_attempts_are_found_where_the_list_is_broken(ssh_road: FirecrestRoad) -> None:
    """Of the first nothing is listed any more; the second is live."""
    forget()
    key, spec = new_key(), ssh_road.spec("fail")
    first = await ssh_road.submit(key, spec)
    await ssh_road.until_ended(first)
    control_of(ssh_road).age_job(uuid_of(ssh_road, first), 8 * DAY)
    control_of(ssh_road).switch(queue_delay=20)
    second = await ssh_road.submit(key, spec, if_ended="resubmit")
    client = ssh_road.open()._client  # type: ignore[attr-defined]
    poison = await acall(client.submit, POISON, ssh_road.site().root)
    try:
        assert await ssh_road.submit(key, spec, if_ended="resubmit") == second
        assert len(ssh_road.jobs(key)) == 2
    finally:
        uuid = next(job["id"] for job in control_of(ssh_road).jobs() if str(job["number"]) == poison)
        control_of(ssh_road).end_job(uuid)
        control_of(ssh_road).age_job(uuid, 30 * DAY)


async def test_a_closed_health_gate_is_ridden_out(road: FirecrestRoad) -> None:
    handle = await road.submit(new_key())
    control_of(road).change_site("cedar", unhealthy=True)

    async def recover() -> None:
        await asyncio.sleep(2.5)
        control_of(road).change_site("cedar", unhealthy=False)

    opening = asyncio.create_task(recover())
    key = new_key()
    second = await road.submit(key)
    await opening
    assert [job["id"] for job in road.jobs(key)] == [second.remote_id]
    assert (await road.status(handle)).state in (RunState.SCHEDULED, RunState.RUNNING)


async def test_a_poll_while_the_gate_is_closed_is_unknown(road: FirecrestRoad, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "POLL_TIMEOUT", 0.5)
    handle = await road.submit(new_key())
    control_of(road).change_site("cedar", unhealthy=True)
    status = (await acall(road.open().poll, [handle]))[handle]
    assert status.state is RunState.UNKNOWN
    assert "is unhealthy" in status.site_word


async def test_accounting_that_is_down_is_unknown_and_no_end(
    road: FirecrestRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "POLL_TIMEOUT", 0.5)
    handle = await road.submit(new_key())
    control_of(road).change_site("cedar", accounting_down=True)
    status = (await acall(road.open().poll, [handle]))[handle]
    assert status.state is RunState.UNKNOWN
    control_of(road).change_site("cedar", accounting_down=False)
    assert (await road.status(handle)).state in (RunState.SCHEDULED, RunState.RUNNING)


async def test_the_name_of_another_job_may_break_the_list(
    ssh_road: FirecrestRoad, caplog: pytest.LogCaptureFixture
) -> None:
    forget()
    client = ssh_road.open()._client  # type: ignore[attr-defined]
    poison = await acall(client.submit, POISON, ssh_road.site().root)
    try:
        key = new_key()
        handle = await ssh_road.submit(key)
        assert await ssh_road.submit(key) == handle
        assert (await ssh_road.status(handle)).state in (RunState.SCHEDULED, RunState.RUNNING)
        assert (await ssh_road.status(handle)).state in (RunState.SCHEDULED, RunState.RUNNING)
        assert caplog.text.count("so that each is asked for by its id meanwhile") == 1
        assert len(ssh_road.jobs(key)) == 1
    finally:
        uuid = next(job["id"] for job in control_of(ssh_road).jobs() if str(job["number"]) == poison)
        control_of(ssh_road).end_job(uuid)
        control_of(ssh_road).age_job(uuid, 30 * DAY)


async def test_a_token_that_the_server_ended_early_gets_one_fresh(road: FirecrestRoad) -> None:
    handle = await road.submit(new_key())
    control_of(road).expire_firecrest_tokens()
    assert (await road.status(handle)).state in (RunState.SCHEDULED, RunState.RUNNING)


async def test_no_more_sessions_than_sshd_allows(ssh_road: FirecrestRoad) -> None:
    """Each call takes a session, and a site may allow few: with four in flight none is refused."""
    control_of(ssh_road).switch(firecrest_max_sessions=4)
    keys = [new_key() for _ in range(12)]
    control_of(ssh_road).reset_requests()
    handles = await asyncio.gather(*(ssh_road.submit(key, ssh_road.spec("fail")) for key in keys))
    assert len({handle.remote_id for handle in handles}) == 12
    refused = [found for found in control_of(ssh_road).requests() if found["status"] in (424, 500)]
    control_of(ssh_road).switch(firecrest_max_sessions=0)
    assert refused == []


# --- Bad input ------------------------------------------------------------------------------------------------------


async def refusal(road: FirecrestRoad, error: type[Exception], **fields: Any) -> str:
    """What a submit says that must send no job."""
    key = new_key()
    job = road.job(site=road.site(**fields))
    with pytest.raises(error) as caught:
        await road.submit(key, job.spec(), site=job.site.open(job.project))
    assert road.jobs(key) == []
    return str(caught.value)


async def test_an_unknown_system(road: FirecrestRoad) -> None:
    assert "has no system daint, only: cedar, cedar-rest" in await refusal(road, ConfigurationError, system="daint")


async def test_a_root_outside_the_file_systems(road: FirecrestRoad) -> None:
    said = await refusal(road, ConfigurationError, root="/etc/mantik")
    assert "/etc/mantik is in none of the file systems that" in said


async def test_a_root_where_we_may_not_write(road: FirecrestRoad) -> None:
    root = road.site().root.replace("sandbox-at-cedar", "sandbox-2-at-cedar")
    said = await refusal(road, SubmitRefused, root=root)
    assert "Permission denied" in said
    assert "Nothing was submitted" in said


@pytest.mark.parametrize(("resources", "words"), [({"Queue": "gpu"}, "partition"), ({"Nodes": 50}, "node")])
async def test_what_sbatch_refuses_is_said_in_its_words(
    ssh_road: FirecrestRoad, resources: dict[str, Any], words: str
) -> None:
    config = {"Resources": {"Queue": "batch", "Runtime": "5m", "Nodes": 1, **resources}}
    said = await refusal(ssh_road, SubmitRefused, backend_config=config)
    assert "sbatch: error" in said
    assert words in said


async def test_an_account_that_slurm_does_not_know(road: FirecrestRoad) -> None:
    assert "account" in (await refusal(road, SubmitRefused, account="nobody")).lower()


async def test_after_a_refusal_the_key_is_free(road: FirecrestRoad) -> None:
    key = new_key()
    bad = road.job(site=road.site(account="nobody"))
    with pytest.raises(SubmitRefused):
        await road.submit(key, bad.spec(), site=bad.site.open(bad.project))
    handle = await road.submit(key)
    assert [job["id"] for job in road.jobs(key)] == [handle.remote_id]


@pytest.mark.parametrize("file", range(3))
async def test_a_file_that_did_not_arrive_is_noticed_before_a_job_is_sent(road: FirecrestRoad, file: int) -> None:
    """An upload into a full quota may be called a success: of the code, the record and the token."""
    key = new_key()
    upload = {"method": "POST", "route": f"{API}/filesystem/{{system}}/ops/upload"}
    control_of(road).add_fault("status", **upload, status=204, body="", skip=file)
    with pytest.raises(SubmitRefused, match="are there. Is the disk quota full|No such file"):
        await road.submit(key)
    assert road.jobs(key) == []


async def test_after_files_that_could_not_be_sent_the_key_is_free_elsewhere(road: FirecrestRoad) -> None:
    """Nothing was submitted, and MLflow must not say otherwise to another site."""
    key = new_key()
    bad = road.job(site=road.site(root=road.site().root.replace("sandbox-at-cedar", "sandbox-2-at-cedar")))
    with pytest.raises(SubmitRefused, match="Nothing was submitted"):
        await road.submit(key, bad.spec(), site=bad.site.open(bad.project))
    elsewhere = sandbox_unicore(road.sandbox)
    handle = await elsewhere.submit(key)
    assert [job["id"] for job in elsewhere.jobs(key)] == [handle.remote_id]
    elsewhere.end_jobs()


async def test_a_client_without_an_account_at_the_site(ssh_road: FirecrestRoad) -> None:
    forget()
    control_of(ssh_road).change_site("cedar", entitled=False)
    try:
        key = new_key()
        with pytest.raises(LoginRefused, match="has no account at the site for 'sandbox-at-cedar'"):
            await ssh_road.submit(key)
        assert ssh_road.jobs(key) == []
    finally:
        control_of(ssh_road).change_site("cedar", entitled=True)


async def test_a_wrong_secret_is_tried_once(road: FirecrestRoad) -> None:
    login = FirecrestCredentials(client_id="sandbox-at-cedar", client_secret="wrong-secret")
    control_of(road).reset_requests()
    for _ in range(3):
        site = road.site(login=login).open(road.job().project)
        with pytest.raises(LoginRefused, match="refused the client 'sandbox-at-cedar'") as caught:
            await acall(site.find, new_key())
        assert "wrong-secret" not in str(caught.value)
    assert control_of(road).count(route="/firecrest-auth/token") == 1


async def test_a_login_that_the_platform_keeps(road: FirecrestRoad) -> None:
    connection = MantikConnection(
        connection_id=road.sandbox.env["MANTIK_CONNECTION_ID_CEDAR"],
        provider="FirecREST",
        credentials=credentials(road.sandbox),
    )
    job = road.job(site=road.site(login=connection))
    key = new_key()
    handle = await road.submit(key, job.spec(), site=job.site.open(job.project))
    assert [job["id"] for job in road.jobs(key)] == [handle.remote_id]


async def test_a_connection_for_another_kind_of_site(road: FirecrestRoad) -> None:
    connection = MantikConnection(
        connection_id=road.sandbox.env["MANTIK_CONNECTION_ID_ALDER"], credentials=credentials(road.sandbox)
    )
    assert "is for UNICORE, not for FirecREST" in await refusal(road, ConfigurationError, login=connection)


async def test_the_variables_are_the_login_where_none_is_given(
    road: FirecrestRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MANTIK_FIRECREST_CLIENT_ID", "MANTIK_FIRECREST_CLIENT_SECRET"):
        monkeypatch.setenv(name, road.sandbox.env[name])
    job = road.job(site=road.site(login=None))
    handle = await road.submit(new_key(), job.spec(), site=job.site.open(job.project))
    assert handle.remote_id.isdigit()


async def test_no_secret_is_at_the_site_or_in_the_log(road: FirecrestRoad, caplog: pytest.LogCaptureFixture) -> None:
    secrets = [road.sandbox.env["MANTIK_FIRECREST_CLIENT_SECRET"], road.sandbox.env["MANTIK_PASSWORD"]]
    with caplog.at_level(logging.DEBUG):
        handle: RunHandle = await road.submit(new_key(), road.spec("main", epochs=1))
        control_of(road).expire_firecrest_tokens()  # the refusal repeats the token in a header
        await road.until_ended(handle)
    store = road.open().store(handle)
    for info in await acall(store.list, "/"):
        if info.is_directory:
            continue
        content = await acall(store.read, info.path)
        assert not any(secret.encode() in content for secret in secrets)
    text = caplog.text
    assert "Bearer ey" not in text
    assert not any(secret in text for secret in secrets)
    assert (await tracked(road, handle)).status == "FINISHED"
