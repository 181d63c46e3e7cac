"""Runs at UNICORE sites: how they end, what they find around them, their log, their files, their MLflow run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_mantik.errors import ConfigurationError, NotFound, RequestFailed, ServiceUnavailable, SubmitRefused
from prefect_mantik.loop import acall
from prefect_mantik.runs import Reason, RunHandle, RunKey, RunState, RunStatus
from prefect_mantik.sandbox.process import SandboxControl
from prefect_mantik.sites import base
from prefect_mantik.sites.tracked import KEY_TAG
from tests.contract.conftest import UnicoreRoad
from tests.contract.running import LOGS, content, log_of, project_in, run, short_tokens, tracked, waited
from tests.sandbox_jobs import new_key

JOBS = "/{site}/rest/core/jobs"
DETAILS = f"{JOBS}/{{jobId}}/details"


@pytest.fixture
def alder(sandbox_unicore_road: UnicoreRoad) -> Iterator[UnicoreRoad]:
    """The sandbox's site, whose switches are put back."""
    control = sandbox_unicore_road.sandbox.control
    yield sandbox_unicore_road
    control.switch(token_lifetime=3600.0, unicore_status_lag=0.2)
    control.expire_tokens()  # those that live for seconds


def control_of(road: UnicoreRoad) -> SandboxControl:
    return road.sandbox.control


def config(road: UnicoreRoad, resources: dict[str, Any] | None = None, **environment: Any) -> dict[str, Any]:
    """A backend config with commands."""
    found = road.site().backend_config
    variables = {"Variables": road.variables} if road.variables else {}
    return {"Resources": {**found["Resources"], **(resources or {})}, "Environment": {**variables, **environment}}


# --- How runs end ---------------------------------------------------------------------------------------------------


async def test_a_run_that_fails_tells_its_exit_code(unicore_road: UnicoreRoad, tmp_path: Path) -> None:
    handle = await run(unicore_road, project_in(tmp_path, main="exit 42"))
    status = await unicore_road.until_ended(handle)
    assert (status.state, status.reason, status.exit_code) == (RunState.FAILED, Reason.EXIT_CODE, 42)
    assert status.describe() == "FAILED (exit code 42)"


async def test_a_run_over_its_time_limit(alder: UnicoreRoad) -> None:
    job = alder.job(site=alder.site(backend_config=config(alder, {"Runtime": "2s"})), entry_point="sleep")
    handle = await alder.submit(new_key(), job.spec({"seconds": 60}))
    status = await alder.until_ended(handle)
    assert (status.state, status.reason) == (RunState.FAILED, Reason.TIME_LIMIT)


@pytest.mark.parametrize(
    ("word", "state", "reason"),
    [
        ("OUT_OF_MEMORY", RunState.FAILED, Reason.OUT_OF_MEMORY),
        ("NODE_FAIL", RunState.FAILED, Reason.NODE_FAIL),
        ("TIMEOUT", RunState.FAILED, Reason.TIME_LIMIT),
        ("CANCELLED", RunState.KILLED, Reason.CANCELLED_BY_OTHER),
    ],
)
async def test_a_run_that_the_batch_system_ends(alder: UnicoreRoad, word: str, state: RunState, reason: Reason) -> None:
    handle = await alder.submit(new_key())
    await alder.until(handle, RunState.RUNNING)
    control_of(alder).end_job(handle.remote_id, word)
    status = await alder.until_ended(handle)
    assert (status.state, status.reason) == (state, reason)


async def test_a_run_that_was_preempted(alder: UnicoreRoad) -> None:
    handle = await alder.submit(new_key())
    await alder.until(handle, RunState.RUNNING)
    body = '{"JobState": "PREEMPTED", "Reason": "Resources"}'
    control_of(alder).add_fault("status", route=DETAILS, status=200, body=body, times=None)
    control_of(alder).end_job(handle.remote_id, "FAILED")
    status = await alder.until_ended(handle)
    assert (status.state, status.reason) == (RunState.FAILED, Reason.PREEMPTED)


async def test_a_reason_that_cannot_be_asked_for_changes_no_end(alder: UnicoreRoad) -> None:
    control_of(alder).add_fault("status", route=DETAILS, status=404, times=None)
    handle = await alder.submit(new_key(), alder.spec("fail"))
    status = await alder.until_ended(handle)
    assert (status.state, status.reason) == (RunState.FAILED, Reason.EXIT_CODE)


async def test_a_run_that_we_cancel_in_each_state(alder: UnicoreRoad) -> None:
    control_of(alder).switch(queue_delay=1)
    for wanted in (RunState.SCHEDULED, RunState.RUNNING):
        handle = await alder.submit(new_key())
        await alder.until(handle, wanted)
        await acall(alder.open().cancel, handle)
        status = await waited(alder, handle)
        assert (status.state, status.reason) == (RunState.KILLED, Reason.CANCELLED_BY_US)
        found = await tracked(alder, handle)
        assert (found.status, found.tags.get("prefect_mantik.cancelled")) == ("KILLED", "true")


async def test_a_run_that_somebody_else_aborts(unicore_road: UnicoreRoad) -> None:
    handle = await unicore_road.submit(new_key())
    await unicore_road.until(handle, RunState.RUNNING)
    with unicore_road._http() as http:
        http.post(f"{unicore_road.url}/jobs/{handle.remote_id}/actions/abort", json={}).raise_for_status()
    status = await unicore_road.until_ended(handle)
    assert (status.state, status.reason) == (RunState.KILLED, Reason.CANCELLED_BY_OTHER)
    assert status.exit_code is None


async def test_a_run_that_somebody_else_deletes_is_lost_and_not_finished(
    unicore_road: UnicoreRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await unicore_road.submit(new_key())
    with unicore_road._http() as http:
        http.delete(f"{unicore_road.url}/jobs/{handle.remote_id}").raise_for_status()
    status = await unicore_road.status(handle)
    assert status.state is RunState.UNKNOWN
    assert f"has no job {handle.remote_id}" in status.site_word
    monkeypatch.setattr(base, "FIRST_MINUTES", 0.0)
    status = await unicore_road.status(handle)
    assert (status.state, status.reason) == (RunState.LOST, Reason.LOST)
    assert await acall(unicore_road.open().read_log, handle, 7) == (b"", 7)
    await acall(unicore_road.open().cancel, handle)


async def test_a_run_that_is_held_has_not_ended_and_goes_on(alder: UnicoreRoad) -> None:
    """UNICORE cannot name the state of a job that an operator holds."""
    handle = await alder.submit(new_key(), alder.spec("sleep", seconds=1))
    await alder.until(handle, RunState.RUNNING)
    control_of(alder).hold_job(handle.remote_id, reason="Held by the administrator")
    status = await alder.status(handle)
    assert (status.state, status.reason, status.site_word) == (RunState.SCHEDULED, Reason.PAUSED, "UNDEFINED")
    control_of(alder).release_job(handle.remote_id)
    assert (await alder.until_ended(handle)).state is RunState.FINISHED


async def test_a_run_that_never_gets_its_turn_waits(alder: UnicoreRoad) -> None:
    handle = await alder.submit(new_key())
    control_of(alder).hold_job(handle.remote_id, "QUEUED", "Reason=QOSMaxJobs")
    await asyncio.sleep(1)
    status = await alder.status(handle)
    assert (status.state, status.reason) == (RunState.SCHEDULED, None)
    await acall(alder.open().cancel, handle)


async def test_a_job_whose_wrapper_was_killed_has_not_finished(unicore_road: UnicoreRoad, tmp_path: Path) -> None:
    """UNICORE calls it SUCCESSFUL: only an exit code proves success."""
    handle = await run(unicore_road, project_in(tmp_path, main="kill -9 $PPID"))
    status = await unicore_road.until_ended(handle)
    assert (status.state, status.exit_code) == (RunState.FAILED, None)


async def test_success_without_an_exit_code_is_none(alder: UnicoreRoad) -> None:
    handle = await alder.submit(new_key())
    url = f"{alder.url}/jobs/{handle.remote_id}".removeprefix(alder.sandbox.url)
    control_of(alder).add_fault("status", route=url, method="GET", status=200, body='{"status": "SUCCESSFUL"}')
    status = await alder.status(handle)
    assert (status.state, status.reason) == (RunState.FAILED, Reason.UNTOLD)
    assert "left no exit code" in status.message


async def test_a_word_that_is_not_known_is_no_end(alder: UnicoreRoad) -> None:
    handle = await alder.submit(new_key())
    url = f"{alder.url}/jobs/{handle.remote_id}".removeprefix(alder.sandbox.url)
    control_of(alder).add_fault("status", route=url, method="GET", status=200, body='{"status": "HIBERNATING"}')
    status = await alder.status(handle)
    assert (status.state, status.site_word) == (RunState.UNKNOWN, "HIBERNATING")
    assert (await alder.status(handle)).state in (RunState.SCHEDULED, RunState.RUNNING)


async def test_states_never_go_back_though_ready_comes_twice(unicore_road: UnicoreRoad) -> None:
    site = unicore_road.open()
    handle = await unicore_road.submit(new_key(), unicore_road.spec("silent"), site=site)
    seen: list[RunStatus] = []
    while not (seen and seen[-1].state.is_end):
        seen.append((await acall(site.poll, [handle]))[handle])
        await asyncio.sleep(0.03)
    order = [RunState.SCHEDULED, RunState.RUNNING, RunState.FINISHED]
    places = [order.index(status.state) for status in seen]
    assert places == sorted(places)


async def test_a_run_whose_name_is_a_reason_fails_for_its_own(alder: UnicoreRoad) -> None:
    handle = await alder.submit(new_key("preemption timelimit oom-kill"), alder.spec("fail"))
    assert (await alder.until_ended(handle)).reason is Reason.EXIT_CODE


# --- The log and the files ------------------------------------------------------------------------------------------


async def test_a_log_that_grows_is_followed_by_its_offset(unicore_road: UnicoreRoad, tmp_path: Path) -> None:
    command = "for i in $(seq 20); do echo line $i; sleep 0.05; done"
    handle = await run(unicore_road, project_in(tmp_path, main=command))
    site, read, offset, ended = unicore_road.open(), b"", 0, False
    while not ended:
        ended = (await unicore_road.status(handle)).state.is_end
        new, offset = await acall(site.read_log, handle, offset)
        read += new
    assert [line for line in read.decode().splitlines() if line.startswith("line")] == [
        f"line {n + 1}" for n in range(20)
    ]
    assert (read, offset) == await acall(site.read_log, handle)


async def test_all_that_a_run_prints_is_in_one_log(unicore_road: UnicoreRoad, tmp_path: Path) -> None:
    """Where two writers have one file, one of them loses lines."""
    command = "for i in 1 2 3; do echo out $i; echo err $i >&2; done"
    handle = await run(unicore_road, project_in(tmp_path, main=command))
    await unicore_road.until_ended(handle)
    lines = (await log_of(unicore_road, handle)).splitlines()
    assert lines[-6:] == [f"{stream} {number}" for number in (1, 2, 3) for stream in ("out", "err")]


NAMES = ["a b", "a#b", "a?b", "a+b", "ä€文", "semi;colon", "dollar$x", "quote'\"", "star*", "a&b=c"]


async def test_names_that_urls_do_not_like(unicore_road: UnicoreRoad) -> None:
    store = unicore_road.open().store(await _one_job(unicore_road))
    for name in NAMES:
        await acall(store.write, f"/dir {name}/{name}", b"0123456789")
        assert await acall(store.read, f"/dir {name}/{name}", 2, 3) == b"234"
        assert [found.path for found in await acall(store.list, f"/dir {name}")] == [f"/dir {name}/{name}"]
        await acall(store.rename, f"/dir {name}/{name}", f"/dir {name}/moved {name}")
        with pytest.raises(NotFound):
            await acall(store.stat, f"/dir {name}/{name}")
    assert {f"/dir {name}" for name in NAMES} <= {found.path for found in await acall(store.list, "/")}


async def test_an_empty_file(unicore_road: UnicoreRoad) -> None:
    store = unicore_road.open().store(await _one_job(unicore_road))
    await acall(store.write, "/empty", b"")
    assert (await acall(store.stat, "/empty")).size == 0
    assert await acall(store.read, "/empty") == b""
    assert await acall(store.read, "/empty", 5) == b""
    await acall(store.remove, "/empty")


async def test_a_large_file_arrives_whole(unicore_road: UnicoreRoad) -> None:
    """Large files come in pieces without a length."""
    store, data = unicore_road.open().store(await _one_job(unicore_road)), bytes(range(256)) * 2**16
    await acall(store.write, "/large", data)
    assert await acall(store.read, "/large") == data
    assert await acall(store.read, "/large", len(data) - 5) == data[-5:]
    await acall(store.remove, "/large")


@pytest.mark.parametrize("name", ["/100%", "/a\\b", "/../x"])
async def test_a_name_that_no_site_takes_is_a_clear_error(unicore_road: UnicoreRoad, name: str) -> None:
    store = unicore_road.open().store(await _one_job(unicore_road))
    with pytest.raises(ConfigurationError, match="UNICORE takes no name|leads out of the storage"):
        await acall(store.write, name, b"x")


async def _one_job(road: UnicoreRoad) -> RunHandle:
    """A job that waits, whose directory tests may fill."""
    key = new_key()
    await acall(road.open().post, road.spec("silent"), key, 1)
    [handle] = await acall(road.open().find, key)
    store = road.open().store(handle)
    for _ in range(100):
        with contextlib.suppress(RequestFailed):
            if any(info.path == "/mantik-token" for info in await acall(store.list, "/")):
                return handle
        await asyncio.sleep(0.1)
    raise AssertionError("the job got no directory")


async def test_commands_with_windows_line_ends(unicore_road: UnicoreRoad, tmp_path: Path) -> None:
    """Of the backend config, and an MLproject that was saved on Windows."""
    project_in(tmp_path, main="echo trained > result.txt")
    windows = (tmp_path / "MLproject").read_text().replace("\n", "\r\n")
    (tmp_path / "MLproject").write_bytes(windows.encode())
    commands = {"PreRunCommandOnComputeNode": "mkdir one\r\ncd one\r\ncd ..\r\nexport TWO=2\r\n"}
    site = unicore_road.site(backend_config=config(unicore_road, None, **commands))
    handle = await run(unicore_road, str(tmp_path), site=site)
    status = await unicore_road.until_ended(handle)
    assert status.state is RunState.FINISHED, await log_of(unicore_road, handle)
    assert await content(unicore_road, handle, "/result.txt") == b"trained\n"
    assert {"/one", "/result.txt"} <= {info.path for info in await acall(unicore_road.open().store(handle).list, "/")}


# --- What a job finds around it -------------------------------------------------------------------------------------

AWKWARD = {
    "COMMAS": "a,b,,c",
    "QUOTES": """say "hi" and 'ho'""",
    "BACKQUOTES": "`touch broken`",
    "SUBSTITUTION": "$(touch broken)",
    "LINES": "one\ntwo\n\nthree",
    "UNICODE": "Grüße, 世界 €",
    "BACKSLASH": "\\a \\\\ \\n end\\",
    "SPACES": "  two  spaces  ",
    "SIGNS": "# ; & | > < * ? ! ~ = %",
    "DOLLAR": "5 $ and $",
    "EMPTY": "",
}


async def test_awkward_variables_arrive_as_they_are_written(unicore_road: UnicoreRoad, tmp_path: Path) -> None:
    """Only $NAME and ${NAME} are replaced."""
    expanded = {"NAMED": "$QUOTES/${COMMAS}", "OF_OURS": "$MANTIK_PROJECT_ID"}
    unicore_road.variables = {**unicore_road.variables, **AWKWARD, **expanded}
    handle = await run(unicore_road, project_in(tmp_path, main="env -0 > env.out"))
    assert (await unicore_road.until_ended(handle)).state is RunState.FINISHED
    found = _environment(await content(unicore_road, handle, "/env.out"))
    assert {name: found.get(name) for name in AWKWARD} == AWKWARD
    assert found["NAMED"] == f"{AWKWARD['QUOTES']}/{AWKWARD['COMMAS']}"
    assert found["OF_OURS"] == unicore_road.sandbox.env["MANTIK_PROJECT_ID"]
    names = {info.path for info in await acall(unicore_road.open().store(handle).list, "/")}
    assert "/broken" not in names


def _environment(data: bytes) -> dict[str, str]:
    return dict(item.split("=", 1) for item in data.decode().split("\0") if "=" in item)


async def test_awkward_parameters_arrive_as_they_are_given(unicore_road: UnicoreRoad, tmp_path: Path) -> None:
    names = "\n".join(f"      {name}: string" for name in AWKWARD)
    words = " ".join(f"{{{name}}}" for name in AWKWARD)
    (tmp_path / "MLproject").write_text(
        f"name: x\nentry_points:\n  main:\n    parameters:\n{names}\n"
        f"    command: \"printf '%s\\\\0' {words} > args.out\"\n"
    )
    handle = await run(unicore_road, str(tmp_path), parameters=AWKWARD)
    assert (await unicore_road.until_ended(handle)).state is RunState.FINISHED, await log_of(unicore_road, handle)
    assert (await content(unicore_road, handle, "/args.out")).decode().split("\0")[:-1] == list(AWKWARD.values())


async def test_a_job_has_the_variables_of_the_platform(unicore_road: UnicoreRoad, tmp_path: Path) -> None:
    handle = await run(unicore_road, project_in(tmp_path, main="env -0 > env.out"))
    assert (await unicore_road.until_ended(handle)).state is RunState.FINISHED
    found, env = _environment(await content(unicore_road, handle, "/env.out")), unicore_road.sandbox.env
    assert handle.key is not None
    assert {
        name: value for name, value in found.items() if name.startswith(("MANTIK_", "MLFLOW_RUN", "MLFLOW_EXP"))
    } == {
        "MANTIK_RUN_KEY": f"{handle.site_key}-1",
        "MANTIK_RUN_KEY_DIGEST": handle.key.digest,
        "MANTIK_RUN_SPEC_DIGEST": found["MANTIK_RUN_SPEC_DIGEST"],
        "MANTIK_PROJECT_ID": env["MANTIK_PROJECT_ID"],
        "MANTIK_EXPERIMENT_REPOSITORY_ID": env["MANTIK_EXPERIMENT_REPOSITORY_ID"],
        "MANTIK_WORKING_DIRECTORY": found["PWD"],
        "MLFLOW_EXPERIMENT_ID": handle.mlflow_experiment_id,
        "MLFLOW_RUN_ID": handle.mlflow_run_id,
        "MLFLOW_RUN_NAME": (await tracked(unicore_road, handle)).name,
    }
    assert found["MLFLOW_TRACKING_URI"].rstrip("/") == unicore_road.sandbox.tracking_uri.rstrip("/")
    assert found["MLFLOW_TRACKING_TOKEN"]


async def test_a_job_that_reads_its_input_does_not_hang(unicore_road: UnicoreRoad, tmp_path: Path) -> None:
    """Under UNICORE it may be a pipe that never ends."""
    handle = await run(unicore_road, project_in(tmp_path, main="cat > input.out"))
    assert (await unicore_road.until_ended(handle, 20)).state is RunState.FINISHED
    assert (await acall(unicore_road.open().store(handle).stat, "/input.out")).size == 0


async def test_tracking_credentials_of_the_sites_profile_do_not_reach_the_job(
    alder: UnicoreRoad, tmp_path: Path
) -> None:
    """MLflow would prefer them to the token."""
    home = alder.open().store()
    await acall(
        home.write,
        "/.bash_profile",
        b"export MLFLOW_TRACKING_USERNAME=ada MLFLOW_TRACKING_PASSWORD=secret PROFILE=read\n",
    )
    try:
        handle = await run(alder, project_in(tmp_path, main="env -0 > env.out"))
        assert (await alder.until_ended(handle)).state is RunState.FINISHED
        found = _environment(await content(alder, handle, "/env.out"))
    finally:
        await acall(home.remove, "/.bash_profile")
    assert found["PROFILE"] == "read"
    assert not {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"} & set(found)


async def test_the_token_is_in_its_file_only_and_nobody_else_may_read_that(
    unicore_road: UnicoreRoad, tmp_path: Path
) -> None:
    command = (
        'stat -c "%a %n" mantik-token > mode.out && stat -c "%a" . >> mode.out && '
        'grep -rlF "$MLFLOW_TRACKING_TOKEN" . > holders.out || true'
    )
    handle = await run(unicore_road, project_in(tmp_path, main=command))
    assert (await unicore_road.until_ended(handle)).state is RunState.FINISHED, await log_of(unicore_road, handle)
    file, directory = (await content(unicore_road, handle, "/mode.out")).decode().splitlines()
    assert file == "600 mantik-token"
    assert directory == "700"
    assert (await content(unicore_road, handle, "/holders.out")).decode().split() == ["./mantik-token"]
    token = (await content(unicore_road, handle, "/mantik-token")).split()[1].decode()
    with unicore_road._http() as http:
        for path in ("", "/submitted", "/details"):
            assert token not in http.get(f"{unicore_road.url}/jobs/{handle.remote_id}{path}").text
    assert token not in await log_of(unicore_road, handle)
    assert token not in handle.model_dump_json()


async def test_the_token_file_is_private_while_the_job_waits(unicore_road: UnicoreRoad) -> None:
    handle = await unicore_road.submit(new_key())
    found = await acall(unicore_road.open()._client.stat, f"{handle.remote_id}-uspace", "/mantik-token")  # type: ignore[attr-defined]
    assert found.permissions[3:].strip("-") == ""
    assert found.size > 20


# --- The tracking token and the MLflow run --------------------------------------------------------------------------


async def test_the_token_of_a_job_that_waits_longer_than_it_lives_is_kept_fresh(
    alder: UnicoreRoad, tmp_path: Path
) -> None:
    short_tokens(alder, 5)
    control_of(alder).switch(queue_delay=8)
    (tmp_path / "log.py").write_text(LOGS)
    handle = await run(alder, project_in(tmp_path, main="python log.py"))
    status = await waited(alder, handle)
    assert status.state is RunState.FINISHED, await log_of(alder, handle)
    found = await tracked(alder, handle)
    assert (found.status, found.metrics["loss"].value) == ("FINISHED", 0.5)
    assert "no valid tracking token" not in await log_of(alder, handle)


async def test_a_job_that_nobody_waited_for_trains_all_the_same(alder: UnicoreRoad) -> None:
    """Its token ended in the queue: it logs to its own directory, says so, and its MLflow run is closed afterwards."""
    short_tokens(alder, 3)
    control_of(alder).switch(queue_delay=4)
    key = new_key()
    handle = await alder.submit(key, alder.spec("main", epochs=1))
    for _ in range(100):
        if not any(job["live"] for job in alder.jobs(key)):
            break
        await asyncio.sleep(0.3)
    assert (await tracked(alder, handle)).status == "SCHEDULED"
    status = await waited(alder, handle)
    log = await log_of(alder, handle)
    assert status.state is RunState.FINISHED, log
    assert "mantik: no valid tracking token, so this run logs to" in log
    assert "epoch 0: loss" in log
    assert (await acall(alder.open().store(handle).stat, "/mlruns")).is_directory
    found = await tracked(alder, handle)
    assert found.status == "FINISHED"
    assert found.end_time is not None
    assert found.metrics == {}


async def test_a_run_trains_and_logs_to_mlflow(unicore_road: UnicoreRoad) -> None:
    handle = await unicore_road.submit(new_key(), unicore_road.spec("main", epochs=2, hidden=8))
    status = await unicore_road.until_ended(handle)
    assert status.state is RunState.FINISHED, await log_of(unicore_road, handle)
    found = await tracked(unicore_road, handle)
    assert found.status == "FINISHED"
    assert found.metrics["val_loss"].step == 1
    assert found.parameters["hidden"] == "8"
    assert found.experiment_id == handle.mlflow_experiment_id


async def died_after_making_the_mlflow_run(road: UnicoreRoad, key: RunKey) -> None:
    control_of(road).add_fault("drop_before", route=JOBS, method="POST")
    with pytest.raises(ServiceUnavailable):
        await acall(road.open().post, road.spec(), key, 1)


async def test_the_mlflow_run_of_a_submit_that_died_is_found_by_its_tag(alder: UnicoreRoad) -> None:
    key = new_key()
    await died_after_making_the_mlflow_run(alder, key)
    handle = await alder.submit(key)
    project = alder.job().project
    runs = await acall(
        project.credentials.tracking_client().runs_tagged, KEY_TAG, key.site_key, [str(handle.mlflow_experiment_id)]
    )
    assert [found.run_id for found in runs] == [handle.mlflow_run_id]


async def test_a_new_attempt_has_an_mlflow_run_of_its_own(alder: UnicoreRoad) -> None:
    key, spec = new_key(), alder.spec("fail")
    first = await alder.submit(key, spec)
    await alder.until_ended(first)
    second = await alder.submit(key, spec, if_ended="resubmit")
    assert first.mlflow_run_id != second.mlflow_run_id


async def test_an_mlflow_run_that_somebody_deleted_is_not_logged_to(alder: UnicoreRoad) -> None:
    """MLflow takes nothing for a deleted run: the job would fail."""
    key = new_key()
    await died_after_making_the_mlflow_run(alder, key)
    tracking, project = alder.job().project.credentials.tracking_client(), alder.job().project
    experiment = await acall(
        project.credentials.get_client().experiment, project.project_id, project.experiment_repository_id
    )
    [deleted] = await acall(tracking.runs_tagged, KEY_TAG, key.site_key, [experiment.mlflow_experiment_id])
    await acall(tracking.call, "POST", "runs/delete", {"run_id": deleted.run_id})
    handle = await alder.submit(key, alder.spec("silent"))
    assert handle.mlflow_run_id != deleted.run_id
    assert (await alder.until_ended(handle)).state is RunState.FINISHED


async def test_a_tracking_server_that_is_down_leaves_no_doubt_about_a_job(alder: UnicoreRoad) -> None:
    """Nothing was sent to the site yet."""
    control_of(alder).add_fault("status", route="*runs/create*", method="POST", status=500, times=None)
    key, began = new_key(), time.monotonic()
    with pytest.raises(SubmitRefused, match="Nothing was submitted .*for key"):
        await alder.submit(key)
    assert time.monotonic() - began < 10
    assert alder.jobs(key) == []


async def test_the_mlflow_run_of_a_job_that_died_is_closed(unicore_road: UnicoreRoad) -> None:
    handle = await unicore_road.submit(new_key(), unicore_road.spec("die"))
    await waited(unicore_road, handle)
    found = await tracked(unicore_road, handle)
    assert found.status == "FAILED"
    assert found.end_time is not None


async def test_the_mlflow_run_that_the_code_closed_is_left_alone(
    alder: UnicoreRoad, caplog: pytest.LogCaptureFixture
) -> None:
    site = alder.site(backend_config=config(alder, PostRunCommandOnComputeNode="exit 4"))
    job = alder.job(site=site, entry_point="silent")
    handle = await alder.submit(new_key(), job.spec())
    with caplog.at_level(logging.WARNING):
        status = await waited(alder, handle)
    assert (status.state, status.exit_code) == (RunState.FAILED, 4)
    assert (await tracked(alder, handle)).status == "FINISHED"
    assert f"{handle.describe()} logged that it finished, and then its job ended FAILED (exit code 4)" in caplog.text
