"""Runs at FirecREST sites: how they end and wait, what they find around them, their log and files."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from prefect_mantik.api import impatient
from prefect_mantik.errors import BackendConfigInvalid, ConfigurationError, NotSupported
from prefect_mantik.loop import acall
from prefect_mantik.runs import Reason, RunHandle, RunState
from prefect_mantik.sandbox.process import SandboxControl
from prefect_mantik.sites.firecrest import site as site_module
from prefect_mantik.sites.tracked import CANCELLED_TAG
from tests.contract.conftest import FirecrestRoad
from tests.contract.running import LOGS, content, log_of, project_in, run, short_tokens, tracked, uuid_of, waited
from tests.sandbox_jobs import new_key

DAY = 86400


STAT = "/firecrest/v2/filesystem/{system}/ops/stat"
RUN_OF_MLFLOW = "/tracking/api/2.0/mlflow/runs/get"


@pytest.fixture
def cedar(firecrest_road: FirecrestRoad) -> Iterator[FirecrestRoad]:
    """The sandbox's site, whose switches are put back."""
    control = firecrest_road.sandbox.control
    yield firecrest_road
    control.switch(token_lifetime=3600.0, firecrest_command_timeout=5.0)
    control.expire_tokens()


def control_of(road: FirecrestRoad) -> SandboxControl:
    return road.sandbox.control


def config(road: FirecrestRoad, resources: dict[str, Any] | None = None, **environment: Any) -> dict[str, Any]:
    found = road.site().backend_config
    return {"Resources": {**found["Resources"], **(resources or {})}, "Environment": environment}


# --- How runs end ---------------------------------------------------------------------------------------------------


async def test_a_run_over_its_time_limit(ssh_road: FirecrestRoad) -> None:
    job = ssh_road.job(site=ssh_road.site(backend_config=config(ssh_road, {"Runtime": "2s"})), entry_point="sleep")
    handle = await ssh_road.submit(new_key(), job.spec({"seconds": 60}))
    status = await ssh_road.until_ended(handle)
    assert (status.state, status.reason, status.exit_code) == (RunState.FAILED, Reason.TIME_LIMIT, None)


@pytest.mark.parametrize(
    ("word", "state", "reason"),
    [
        ("OUT_OF_MEMORY", RunState.FAILED, Reason.OUT_OF_MEMORY),
        ("NODE_FAIL", RunState.FAILED, Reason.NODE_FAIL),
        ("PREEMPTED", RunState.FAILED, Reason.PREEMPTED),
        ("TIMEOUT", RunState.FAILED, Reason.TIME_LIMIT),
        ("CANCELLED", RunState.KILLED, Reason.CANCELLED_BY_OTHER),
    ],
)
async def test_a_run_that_the_batch_system_ends(
    cedar: FirecrestRoad, word: str, state: RunState, reason: Reason
) -> None:
    handle = await cedar.submit(new_key())
    await cedar.until(handle, RunState.RUNNING)
    control_of(cedar).end_job(uuid_of(cedar, handle), word)
    status = await cedar.until_ended(handle)
    assert (status.state, status.reason) == (state, reason)
    assert (await tracked(cedar, handle)).status == ("KILLED" if state is RunState.KILLED else "FAILED")


async def test_a_job_that_cannot_enter_its_directory_was_refused(cedar: FirecrestRoad) -> None:
    client = cedar.open()._client  # type: ignore[attr-defined]
    handle = await cedar.submit(new_key())
    elsewhere = cedar.site().root.replace("/sandbox-at-cedar/", "/somebody-else/")
    job = await acall(client.submit, "#!/bin/bash\ntrue\n", elsewhere, {"name": f"{handle.site_key}-1"})
    other, site = handle.model_copy(update={"remote_id": job}), cedar.open()
    for _ in range(100):
        status = (await acall(site.poll, [other]))[other]
        if status.state.is_end:
            break
        await asyncio.sleep(0.1)
    assert (status.state, status.reason) == (RunState.FAILED, Reason.REFUSED)
    assert "could not enter its directory" in status.message


async def test_a_job_whose_node_failed_begins_again_and_its_log_stays(ssh_road: FirecrestRoad, tmp_path: Path) -> None:
    handle = await run(ssh_road, project_in(tmp_path, main='echo begun; [ "$SLURM_RESTART_COUNT" ] || sleep 20'))
    await ssh_road.until(handle, RunState.RUNNING)
    for _ in range(100):
        if b"begun" in (await acall(ssh_road.open().read_log, handle))[0]:
            break
        await asyncio.sleep(0.1)
    control_of(ssh_road).requeue_job(uuid_of(ssh_road, handle), 0.5)
    assert (await ssh_road.until(handle, RunState.SCHEDULED)).state is RunState.SCHEDULED
    status = await ssh_road.until_ended(handle)
    assert status.state is RunState.FINISHED
    assert (await log_of(ssh_road, handle)).count("begun") == 2


async def test_where_a_requeue_cannot_be_seen_the_job_is_ended(rest_road: FirecrestRoad) -> None:
    key = new_key()
    handle = await rest_road.submit(key)
    await rest_road.until(handle, RunState.RUNNING)
    control_of(rest_road).requeue_job(uuid_of(rest_road, handle), 5)
    for _ in range(100):
        if [job["state"] for job in rest_road.jobs(key)] != ["RUNNING"]:
            break
        await asyncio.sleep(0.1)
    status = await waited(rest_road, handle)
    assert (status.state, status.reason) == (RunState.FAILED, Reason.NODE_FAIL)
    assert [job["live"] for job in rest_road.jobs(key)] == [False]


async def requeued(road: FirecrestRoad, seconds: float) -> RunHandle:
    """A run whose node failed, and whose job may start again after some seconds."""
    handle = await road.submit(new_key())
    await road.until(handle, RunState.RUNNING)
    control_of(road).requeue_job(uuid_of(road, handle), seconds)
    for _ in range(100):
        [state] = [job["state"] for job in control_of(road).jobs() if str(job["number"]) == handle.remote_id]
        if state != "RUNNING":
            break
        await asyncio.sleep(0.1)
    return handle


def is_live(road: FirecrestRoad, handle: RunHandle) -> bool:
    return any(str(job["number"]) == handle.remote_id for job in control_of(road).jobs(live=True))


async def test_a_cancel_reaches_a_job_that_is_back_in_the_queue(rest_road: FirecrestRoad) -> None:
    """Though FirecREST says that it has ended."""
    handle = await requeued(rest_road, 30)
    await acall(rest_road.open().cancel, handle)
    assert not is_live(rest_road, handle)


async def test_an_end_is_not_told_before_it_is_one(rest_road: FirecrestRoad) -> None:
    handle = await requeued(rest_road, 30)
    control_of(rest_road).add_fault("status", method="DELETE", route="/firecrest/v2/compute/*", status=503, times=None)
    with impatient(0.5):
        status = await rest_road.status(handle)
    assert status.state is RunState.UNKNOWN
    assert is_live(rest_road, handle)
    control_of(rest_road).clear_faults()
    status = await rest_road.status(handle)
    assert (status.state, status.reason) == (RunState.FAILED, Reason.NODE_FAIL)
    assert not is_live(rest_road, handle)


async def test_a_training_that_finished_in_its_second_start_has_finished(rest_road: FirecrestRoad) -> None:
    handle = await requeued(rest_road, 30)
    tracking = rest_road.job().project.credentials.tracking_client()
    await acall(tracking.set_status, str(handle.mlflow_run_id), "FINISHED", datetime.now(timezone.utc))
    status = await rest_road.status(handle)
    assert status.state is RunState.FINISHED
    assert "MLflow tells this" in status.message


async def test_a_job_that_may_have_started_again_is_not_ended_while_mlflow_cannot_tell(
    rest_road: FirecrestRoad,
) -> None:
    """It may have finished since, or go on: who cannot ask leaves it alone, and asks again."""
    handle = await requeued(rest_road, 30)
    control_of(rest_road).add_fault("status", route=RUN_OF_MLFLOW, status=503, times=None)
    with impatient(0.5):
        status = await rest_road.status(handle)
    assert (status.state, status.reason) == (RunState.UNKNOWN, Reason.UNTOLD)
    assert is_live(rest_road, handle)
    control_of(rest_road).clear_faults()
    status = await rest_road.status(handle)
    assert (status.state, status.reason) == (RunState.FAILED, Reason.NODE_FAIL)


async def test_who_cancelled_a_job_is_mlflows_word_where_its_directory_cannot_be_read(ssh_road: FirecrestRoad) -> None:
    """Only what it says of the same end counts; while it cannot be asked the run is unknown."""
    handle = await ssh_road.submit(new_key())
    await ssh_road.until(handle, RunState.RUNNING)
    tracking = ssh_road.job().project.credentials.tracking_client()
    control_of(ssh_road).end_job(uuid_of(ssh_road, handle), "CANCELLED")
    await waited(ssh_road, handle)
    control_of(ssh_road).add_fault("status", route=STAT, status=403, times=None)
    control_of(ssh_road).add_fault("status", route=RUN_OF_MLFLOW, status=503, times=None)
    with impatient(0.5):
        status = await ssh_road.status(handle)
    assert (status.state, status.reason) == (RunState.UNKNOWN, Reason.UNTOLD)
    control_of(ssh_road).clear_faults()
    control_of(ssh_road).add_fault("status", route=STAT, status=403, times=None)
    for word, tags, reason in (
        ("FINISHED", {}, Reason.UNTOLD),
        ("KILLED", {CANCELLED_TAG: "true"}, Reason.CANCELLED_BY_US),
    ):
        await acall(tracking.set_status, str(handle.mlflow_run_id), word, datetime.now(timezone.utc))
        await acall(tracking.set_tags, str(handle.mlflow_run_id), tags)
        status = await ssh_road.status(handle)
        assert (status.state, status.reason) == (RunState.KILLED, reason)


# --- Waiting for ever -----------------------------------------------------------------------------------------------


async def test_a_job_over_the_partitions_limit_is_stuck(ssh_road: FirecrestRoad) -> None:
    site = ssh_road.site(backend_config=config(ssh_road, {"Queue": "devel", "Runtime": "2h"}))
    handle = await ssh_road.submit(new_key(), ssh_road.job(site=site).spec())
    status = await ssh_road.status(handle)
    assert (status.state, status.reason) == (RunState.SCHEDULED, Reason.STUCK)
    assert "PartitionTimeLimit: its time limit is over the partition's" in status.message


async def test_a_job_that_is_held_is_stuck_until_it_is_released(cedar: FirecrestRoad) -> None:
    control_of(cedar).switch(queue_delay=2.0)
    handle = await cedar.submit(new_key(), cedar.spec("fail"))
    control_of(cedar).hold_job(uuid_of(cedar, handle), "QUEUED", "JobHeldUser")
    status = await cedar.status(handle)
    assert (status.state, status.reason) == (RunState.SCHEDULED, Reason.STUCK)
    control_of(cedar).release_job(uuid_of(cedar, handle))
    assert (await cedar.until_ended(handle)).reason is Reason.EXIT_CODE


async def test_a_stuck_job_is_cancelled_where_that_is_wanted(
    ssh_road: FirecrestRoad, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at first sight: causes come and go."""
    monkeypatch.setattr(site_module, "STUCK_FOR", 2.0)
    fields = {"backend_config": config(ssh_road, {"Queue": "devel", "Runtime": "2h"}), "fail_if_stuck": True}
    job = ssh_road.job(site=ssh_road.site(**fields))
    key = new_key()
    site = job.site.open(job.project)
    handle = await ssh_road.submit(key, job.spec(), site=site)
    await acall(site.tend, {handle: await ssh_road.status(handle)})
    assert [job["live"] for job in ssh_road.jobs(key)] == [True]
    with caplog.at_level(logging.WARNING):
        status = await waited(ssh_road, handle, site)
    assert (status.state, status.reason) == (RunState.KILLED, Reason.CANCELLED_BY_US)
    assert len([record for record in caplog.records if "will not start by itself" in record.message]) == 2
    assert [job["live"] for job in ssh_road.jobs(key)] == [False]


# --- One training in a directory ------------------------------------------------------------------------------------


async def test_of_two_jobs_in_one_directory_one_trains(cedar: FirecrestRoad, tmp_path: Path) -> None:
    """Where a misled submit made two: they have the same MLflow run, and so the same directory."""
    directory = project_in(tmp_path, main="echo trained >> count.txt; sleep 3")
    job, key = cedar.job(directory=directory), new_key()
    site = job.site.open(job.project)
    ids = [await acall(site.post, job.spec(), key, 1) for _ in range(2)]
    handles = await acall(site.find, key)
    assert sorted(handle.remote_id for handle in handles) == sorted(ids)
    ended = [await cedar.until_ended(handle) for handle in handles]
    assert sorted(status.state for status in ended) == [RunState.FAILED, RunState.FINISHED]
    assert await content(cedar, handles[0], "count.txt") == b"trained\n"
    assert "trains in this directory, so this one" in await log_of(cedar, handles[0])


async def test_a_job_that_we_cancelled_leaves_its_directory_to_the_other(cedar: FirecrestRoad, tmp_path: Path) -> None:
    control_of(cedar).switch(queue_delay=3)
    directory = project_in(tmp_path, main="echo trained >> count.txt; sleep 5")
    job, key = cedar.job(directory=directory), new_key()
    site = job.site.open(job.project)
    ids = [await acall(site.post, job.spec(), key, 1) for _ in range(2)]
    handles = {handle.remote_id: handle for handle in await acall(site.find, key)}
    control_of(cedar).hold_job(uuid_of(cedar, handles[ids[0]]), "QUEUED", "JobHeldUser")
    await cedar.until(handles[ids[1]], RunState.RUNNING)
    await acall(site.cancel, handles[ids[1]])
    control_of(cedar).release_job(uuid_of(cedar, handles[ids[0]]))
    assert (await cedar.until_ended(handles[ids[0]])).state is RunState.FINISHED
    other = await cedar.until_ended(handles[ids[1]])
    assert (other.state, other.reason) == (RunState.KILLED, Reason.CANCELLED_BY_US)


# --- What a job finds around it -------------------------------------------------------------------------------------


async def test_variables_arrive_whole(cedar: FirecrestRoad, tmp_path: Path) -> None:
    command = (
        'printf "%s|" "$LIST" "$QUOTES" "$RATE" > seen.txt; command -v srun > srun.txt; echo "$HOME $USER" > who.txt'
    )
    variables = {"LIST": "1,2,3", "QUOTES": 'it\'s "so" = x', "RATE": "7e-6"}
    job = cedar.job(site=cedar.site(environment={"Variables": variables}), directory=project_in(tmp_path, main=command))
    handle = await cedar.submit(new_key(), job.spec(), site=job.site.open(job.project))
    assert (await cedar.until_ended(handle)).state is RunState.FINISHED
    assert await content(cedar, handle, "seen.txt") == b'1,2,3|it\'s "so" = x|7e-6|'
    assert (await content(cedar, handle, "srun.txt")).strip()
    home, user = (await content(cedar, handle, "who.txt")).split()
    assert home.startswith(b"/")
    assert user


def modes_of(road: FirecrestRoad, handle: RunHandle) -> tuple[int, int]:
    """Of the run's directory and of its token, by the site's own books."""
    [job] = [job for job in control_of(road).jobs() if str(job["number"]) == handle.remote_id]
    directory = Path(job["directory"])
    return directory.stat().st_mode & 0o777, (directory / "mantik-token").stat().st_mode & 0o777


async def test_a_run_logs_with_a_token_that_nobody_else_can_read(cedar: FirecrestRoad) -> None:
    control_of(cedar).switch(queue_delay=3)
    handle = await cedar.submit(new_key(), cedar.spec("main", epochs=2))
    assert modes_of(cedar, handle) == (0o700, 0o600)  # before the job itself could see to it
    assert (await cedar.until_ended(handle)).state is RunState.FINISHED
    assert "val_loss" in (await tracked(cedar, handle)).metrics
    assert modes_of(cedar, handle) == (0o700, 0o600)


async def test_the_token_of_a_job_that_waits_is_kept_fresh(cedar: FirecrestRoad, tmp_path: Path) -> None:
    short_tokens(cedar, 5)
    control_of(cedar).switch(queue_delay=11)
    (tmp_path / "log.py").write_text(LOGS)
    handle = await run(cedar, project_in(tmp_path, main="python log.py"))
    status = await waited(cedar, handle)
    assert status.state is RunState.FINISHED, await log_of(cedar, handle)
    assert (await tracked(cedar, handle)).metrics["loss"].value == 0.5


async def test_code_that_one_upload_cannot_hold(cedar: FirecrestRoad, tmp_path: Path) -> None:
    directory = project_in(tmp_path, main="sha256sum weights.bin > sum.txt && ls > names.txt")
    (tmp_path / "weights.bin").write_bytes(noise := _noise(9 * 2**20))
    handle = await run(cedar, directory)
    assert (await cedar.until_ended(handle)).state is RunState.FINISHED
    assert hashlib.sha256(noise).hexdigest().encode() in await content(cedar, handle, "sum.txt")
    assert b"tar.gz" not in await content(cedar, handle, "names.txt")


def _noise(size: int) -> bytes:
    return random.Random(1).randbytes(size)


async def test_a_resource_that_cannot_be_sent_is_refused_before_anything_is(rest_road: FirecrestRoad) -> None:
    site = rest_road.site(backend_config={"Resources": {"Queue": "batch", "Runtime": "1h", "Nodes": 2}})
    key = new_key()
    with pytest.raises(BackendConfigInvalid) as caught:
        await rest_road.submit(key, rest_road.job(site=site).spec())
    assert "Resources.Runtime cannot be sent" in str(caught.value)
    assert "Resources.Nodes cannot be sent" in str(caught.value)
    assert rest_road.jobs(key) == []


# --- Log and files --------------------------------------------------------------------------------------------------


async def test_a_large_log_is_read_in_pieces_without_cutting_characters(cedar: FirecrestRoad, tmp_path: Path) -> None:
    line = "épôque " * 20
    directory = project_in(tmp_path, main=f"for i in $(seq 40000); do echo $i {line}; done")
    handle = await run(cedar, directory)
    assert (await cedar.until_ended(handle)).state is RunState.FINISHED
    text, offset = b"", 0
    while True:
        part, offset = await acall(cedar.open().read_log, handle, offset)
        text += part
        if not part:
            break
    lines = text.decode().splitlines()
    assert len(text) > 6 * 2**20
    assert lines[-40000:] == [f"{i} {line.strip()}" for i in range(1, 40001)]
    assert await content(cedar, handle, "mantik.log") == text


async def test_files_that_are_empty_or_too_large(cedar: FirecrestRoad) -> None:
    control_of(cedar).switch(firecrest_command_timeout=0.5)
    handle = await cedar.submit(new_key(), cedar.spec("fail"))
    await cedar.until_ended(handle)
    store = cedar.open().store(handle)
    await acall(store.write, "/empty", b"")
    assert (await acall(store.stat, "/empty")).size == 0
    assert await acall(store.read, "/empty") == b""
    with pytest.raises(NotSupported, match="takes at most 5242880 in one request"):
        await acall(store.write, "/large", b"x" * (5 * 2**20 + 1))
    for path in ("/", "", "."):
        with pytest.raises(ConfigurationError, match="is all that .* shows us"):
            await acall(cedar.open().store().remove, path)


async def test_log_and_files_are_found_after_the_root_was_changed(cedar: FirecrestRoad) -> None:
    handle = await cedar.submit(new_key(), cedar.spec("fail"))
    await cedar.until_ended(handle)
    moved = cedar.site(root=f"{cedar.site().root}-new").open(cedar.job().project)
    assert (await acall(moved.read_log, handle))[0]
    assert await acall(moved.store(handle).read, "/MLproject")


async def test_an_array_is_refused_clearly(ssh_road: FirecrestRoad) -> None:
    handle = await ssh_road.submit(new_key())
    client = ssh_road.open()._client  # type: ignore[attr-defined]
    script = "#!/bin/bash\n#SBATCH --array=0-1\n#SBATCH --partition=batch\nsleep 1\n"
    job = await acall(client.submit, script, ssh_road.site().root, {"name": f"{handle.site_key}-1"})
    array, site = handle.model_copy(update={"remote_id": job}), ssh_road.open()
    for _ in range(100):  # while it waits as a whole it looks like any other job
        status = (await acall(site.poll, [array]))[array]
        if status.state is RunState.UNKNOWN:
            break
        await asyncio.sleep(0.1)
    assert "is an array" in status.site_word
    assert "a training run is one job" in status.site_word


async def test_check_says_what_to_do(cedar: FirecrestRoad) -> None:
    site = cedar.site(backend_config=config(cedar, {"Queue": "gpu"}), account="nobody", root="/nowhere/runs").open(
        cedar.job().project
    )
    findings = {finding.what: finding for finding in await acall(site.check)}
    assert findings["log in, and find the system"].ok
    assert "There is no partition gpu, only batch, devel" in findings["find the partition"].message
    assert "There is no account nobody" in findings["find the account"].message
    assert not findings["write below /nowhere/runs"].ok
    assert findings["reach the tracking server from here"].ok
