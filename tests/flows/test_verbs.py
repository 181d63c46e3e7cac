"""The verbs in flows of a user's own: sync and async, handles across processes, the hook."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Literal
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run as this_run

from prefect_mantik import (
    MantikSite,
    Reason,
    RunHandle,
    RunState,
    RunStatus,
    TrainingJob,
    TrainingRun,
    aauthenticate,
    agather_metrics,
    asubmit_runs,
    authenticate,
    await_for_runs,
    cancel_run,
    cancel_runs_of_flow,
    fetch_log,
    submit_run,
    wait_for_run,
    wait_for_runs,
)
from prefect_mantik.errors import BlockInvalid, ConfigurationError, NotSupported, SubmitsFailed, WaitTimeout
from prefect_mantik.ledger import FlowRunLedger, current_key, root_flow_run_id
from prefect_mantik.loop import acall, call
from prefect_mantik.sandbox.process import SandboxProcess
from prefect_mantik.sites.notes import note_of
from prefect_mantik.sites.opening import site_of
from tests.conftest import PrefectServer

SITES = ("alder", "birch", "cedar")
"""Through the platform, by UNICORE, by FirecREST."""


def sleeper(site: str = "alder", seconds: float = 60) -> TrainingJob:
    job = TrainingJob.load(f"train-{site}")
    return job.model_copy(update={"entry_point": "sleep", "parameters": {"seconds": seconds}})


def through_the_platform(job: TrainingJob) -> TrainingJob:
    """The same at a site that is asked through the platform only."""
    return job.model_copy(update={"site": MantikSite.load("cedar-platform")})


async def test_an_async_flow(sandbox: SandboxProcess) -> None:
    @flow
    async def pipeline() -> list[dict[str, float]]:
        login = await aauthenticate("sandbox")
        assert login.username == "sandbox"
        runs = await asubmit_runs({"a": "train-alder", "b": "train-cedar"}, parameters={"epochs": 2})
        results = await await_for_runs(runs)
        return [{name: m.value for name, m in run.final.items()} for run in await agather_metrics(results)]

    metrics = await pipeline()
    assert len(metrics) == 2
    assert all({"loss", "val_loss", "val_accuracy"} <= set(final) for final in metrics)


def test_a_login_shows_no_token(sandbox: SandboxProcess) -> None:
    login = authenticate("sandbox")
    assert set(login.model_dump()) == {"username", "user_id", "expires_at"}
    assert "eyJ" not in login.model_dump_json()


def test_outside_a_flow_a_key_outlives_the_process(sandbox: SandboxProcess, prefect_server: PrefectServer) -> None:
    handle = submit_run(sleeper(), key="outside", scope="flow")
    assert handle.key is not None
    assert handle.key.scope == "origin"
    script = f"""
import json
from prefect_mantik import RunHandle, TrainingRun
run = TrainingRun(RunHandle.model_validate_json({handle.model_dump_json()!r}))
print("STATE " + run.status().state)
"""
    other = subprocess.run(
        [sys.executable, "-c", script],
        env=prefect_server.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert other.stdout.strip().startswith("STATE "), other.stderr
    assert other.stdout.split()[1] in ("SCHEDULED", "RUNNING")
    assert submit_run(sleeper(), key="outside") == handle


def test_a_run_of_blocks_made_in_code_says_that_nobody_else_can_reach_it(
    sandbox: SandboxProcess, prefect_server: PrefectServer, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.sandbox_jobs import training_job

    run = training_job(sandbox, entry_point="silent").trigger(key="in code")
    again = training_job(sandbox, entry_point="silent").trigger(key="in code")
    assert again.handle == run.handle
    assert run.handle.site is None
    assert len([r for r in caplog.records if "can be reached from this process only" in r.message]) == 1
    run.wait_for_completion(timeout=60)
    assert run.fetch_result().finished
    copy = run.handle.model_copy(update={"remote_id": "0" * 32})
    with pytest.raises(NotSupported, match="by another process with a site that is not a saved block"):
        TrainingRun(copy).status()


def test_cancel_and_log_say_what_can_do_it_on_the_proven_platform(sandbox: SandboxProcess) -> None:
    handle = submit_run(through_the_platform(sleeper()), key="neither cancel nor log")
    with pytest.raises(NotSupported, match=r"was not cancelled.*web interface"):
        cancel_run(handle)
    with pytest.raises(NotSupported, match=r"was not read.*web interface"):
        fetch_log(handle)


def test_cancel_and_log_by_the_second_way_and_directly(sandbox: SandboxProcess) -> None:
    """Every path of the platform that is not proven is off."""
    handles = [submit_run(sleeper(site), key=f"cancelled at {site}") for site in SITES]
    for handle in handles:
        cancel_run(handle)
    ended = wait_for_runs(handles, on_failure="return", timeout=30)
    assert [result.status.reason for result in ended] == [Reason.CANCELLED_BY_US] * 3
    for site in SITES:
        failing = TrainingJob.load(f"train-{site}").model_copy(update={"entry_point": "fail", "parameters": {}})
        failed = wait_for_run(submit_run(failing, key=f"with a log at {site}"), on_failure="return")
        assert (failed.status.reason, failed.status.exit_code) == (Reason.EXIT_CODE, 3)
        assert failed.log_tail
        assert "eyJ" not in fetch_log(failed)


def test_cancel_and_log_where_the_platform_has_them(sandbox: SandboxProcess) -> None:
    sandbox.control.switch(all_endpoints=True)
    chatter = through_the_platform(sleeper()).model_copy(update={"entry_point": "fail", "parameters": {}})
    failed = wait_for_run(submit_run(chatter, key="with a log"), on_failure="return")
    assert failed.log_tail
    log = fetch_log(failed)
    assert "#SBATCH" in log
    assert "MLFLOW_TRACKING_TOKEN=***" in log
    assert "eyJ" not in log
    handle = submit_run(through_the_platform(sleeper()), key="to be cancelled")
    cancel_run(handle)
    assert wait_for_run(handle, on_failure="return").status.state is RunState.KILLED


async def _flow_run(flow_run_id: UUID) -> FlowRun:
    async with get_client() as client:
        return await client.read_flow_run(flow_run_id)


def test_the_hook_cancels_the_runs_of_its_flow_run_and_no_others(sandbox: SandboxProcess) -> None:
    @flow
    def child(site: str) -> RunHandle:
        return submit_run(sleeper(site), key=f"child's at {site}")

    @flow
    def parent(with_child: bool) -> tuple[str, list[RunHandle]]:
        handles = [submit_run(sleeper(), key="parent's")]
        if with_child:
            handles += [child("birch"), child("cedar")]
        return str(this_run.id), handles

    _, others = parent(with_child=False)
    flow_run_id, handles = parent(with_child=True)
    flow_run = call(_flow_run, UUID(flow_run_id))
    assert sorted(call(FlowRunLedger(flow_run.id).sites)) == [
        "firecrest-site/cedar",
        "mantik-site/alder",
        "unicore-site/birch",
    ]
    cancel_runs_of_flow(flow=parent, flow_run=flow_run, state=flow_run.state)
    ended = wait_for_runs(handles, on_failure="return", timeout=30)
    assert [result.status.state for result in ended] == [RunState.KILLED] * 3
    assert not TrainingRun(others[0]).status().state.is_end


def test_the_hook_says_what_it_cannot_cancel(sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture) -> None:
    @flow
    def parent() -> tuple[str, RunHandle]:
        return str(this_run.id), submit_run(through_the_platform(sleeper()), key="left running")

    flow_run_id, handle = parent()
    flow_run = call(_flow_run, UUID(flow_run_id))
    cancel_runs_of_flow(flow=parent, flow_run=flow_run, state=flow_run.state)
    line = next(record.message for record in caplog.records if "may be live" in record.message)
    assert "'left running' at cedar-platform" in line
    assert handle.links["MLflow"] in line


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(("cedar", {"route": "/firecrest/v2/compute/{system}/jobs"}), id="FirecREST"),
        pytest.param(("birch", {"route": "/BIRCH/rest/core/jobs"}), id="UNICORE"),
    ],
)
def test_the_hook_ends_by_its_id_what_no_list_shows(
    sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture, fault: tuple[str, dict[str, str]]
) -> None:
    site, where = fault

    @flow
    def parent() -> tuple[str, RunHandle]:
        return str(this_run.id), submit_run(sleeper(site), key="unlisted")

    flow_run_id, handle = parent()
    flow_run = call(_flow_run, UUID(flow_run_id))
    sandbox.control.add_fault("status", **where, method="GET", status=503, times=None)
    cancel_runs_of_flow(flow=parent, flow_run=flow_run, state=flow_run.state)
    sandbox.control.clear_faults()
    assert "lists no jobs: only those that were noted are ended" in caplog.text
    assert "Cancelled training run 'unlisted'" in caplog.text
    ended = wait_for_run(handle, on_failure="return", timeout=30)
    assert ended.status.state is RunState.KILLED


def test_the_hook_names_the_runs_of_a_site_that_is_down(
    sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_mantik.cancelling.TIMEOUT", 18.0)

    @flow
    def parent() -> tuple[str, RunHandle]:
        return str(this_run.id), submit_run(sleeper("birch"), key="site down")

    flow_run_id, handle = parent()
    flow_run = call(_flow_run, UUID(flow_run_id))
    sandbox.control.add_fault("status", route="/BIRCH/*", status=503, times=None)
    cancel_runs_of_flow(flow=parent, flow_run=flow_run, state=flow_run.state)
    sandbox.control.clear_faults()
    assert "training run 'site down' at birch may be live" in caplog.text
    assert not TrainingRun(handle).status().state.is_end


def test_a_run_at_a_site_that_is_not_saved_is_said(sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture) -> None:
    @flow
    def parent() -> str:
        job = sleeper("birch")
        site = job.site.model_copy()
        site._block_document_id = site._block_document_name = None
        submit_run(job.model_copy(update={"site": site}), key="unsaved")
        return str(this_run.id)

    flow_run = call(_flow_run, UUID(parent()))
    cancel_runs_of_flow(flow=parent, flow_run=flow_run, state=flow_run.state)
    assert "A job of the key 'unsaved' at " in caplog.text
    assert "its site is not a saved block. Look there." in caplog.text


def test_an_unknown_job_is_named(sandbox: SandboxProcess) -> None:
    from prefect_mantik import submit_runs

    with pytest.raises(SubmitsFailed) as caught:
        submit_runs({"a": "no-such-job"})
    assert isinstance(caught.value.errors["a"], BlockInvalid)
    assert "There is no saved block training-job/no-such-job" in str(caught.value)


@pytest.mark.parametrize("site", ["birch", "cedar"])
def test_an_account_that_is_gone_says_nothing_of_other_runs(sandbox: SandboxProcess, site: str) -> None:
    """Of a run whose job the site has forgotten only MLflow tells, as the account that submitted it."""
    there = sleeper(site).trigger(key=f"beside {site}").handle
    gone = there.model_copy(
        update={"remote_id": "987654", "name": "gone", "key": None, "account": "mantik-credentials/gone"}
    )

    async def ask() -> dict[RunHandle, RunStatus]:
        return await (await site_of(there)).ask([gone, there])

    told = call(ask)
    assert told[there].state in (RunState.SCHEDULED, RunState.RUNNING)
    assert (told[gone].state, told[gone].reason) == (RunState.UNKNOWN, Reason.UNTOLD)
    assert "no saved block mantik-credentials/gone" in told[gone].site_word


def test_what_later_versions_bring_says_so(sandbox: SandboxProcess) -> None:
    with pytest.raises(ConfigurationError, match="wait is"):
        wait_for_runs([], wait="pause")  # type: ignore[arg-type]


async def test_a_suspended_laptop_is_no_other_account(sandbox: SandboxProcess) -> None:
    """Tokens that ended without our noticing: one renewal, no error."""
    handle = await acall(_submit_sleeper)
    sandbox.control.expire_tokens()
    status = await TrainingRun(handle).astatus()
    assert status.state in (RunState.SCHEDULED, RunState.RUNNING)
    assert json.loads(handle.model_dump_json())["kind"] == "mantik"


async def _submit_sleeper() -> RunHandle:
    from prefect_mantik.jobs import submit

    job = await TrainingJob.aload("train-alder")
    job = job.model_copy(update={"entry_point": "sleep", "parameters": {"seconds": 60}})  # type: ignore[attr-defined]
    return await submit(job, key="slept")


def test_the_hook_waits_for_a_submit_that_was_cut_short(
    sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """Announced, not visible when the flow run is cancelled: the job that surfaces then is ended too."""
    sandbox.control.switch(all_endpoints=True, run_appears="later", run_appears_after=4.0)

    @flow
    def parent() -> str:
        call(_announce_and_post, "cut short")
        return str(this_run.id)

    flow_run = call(_flow_run, UUID(parent()))
    cancel_runs_of_flow(flow=parent, flow_run=flow_run, state=flow_run.state)
    key = next(iter(call(FlowRunLedger(flow_run.id).notes)))
    jobs = [job for job in sandbox.control.jobs() if (job["runKey"] or "").startswith(key)]
    assert [job["live"] for job in jobs] == [False]


def test_the_hook_names_a_submit_that_never_shows(
    sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_mantik.cancelling.TIMEOUT", 5.0)

    @flow
    def parent() -> str:
        call(_announce_and_post, "never shown", post=False)
        return str(this_run.id)

    flow_run = call(_flow_run, UUID(parent()))
    cancel_runs_of_flow(flow=parent, flow_run=flow_run, state=flow_run.state)
    key = next(iter(call(FlowRunLedger(flow_run.id).notes)))
    lines = [record.message for record in caplog.records if "One may still appear" in record.message]
    assert len(lines) == 1
    assert key in lines[0]


async def _announce_and_post(name: str, post: bool = True) -> None:
    """What a submit does until it is killed."""
    job = await TrainingJob.aload("train-alder")
    job = job.model_copy(update={"entry_point": "sleep", "parameters": {"seconds": 60}})  # type: ignore[attr-defined]
    root = await root_flow_run_id()
    key, site = await current_key(name, root), job.site.open(job.project)
    ledger = FlowRunLedger(root)
    _, way = await ledger.look_up(key)
    await ledger.open(key, note_of(job.spec(), key, 1, site, way))
    if post:
        await site.post(job.spec(), key, 1)


def test_a_note_that_cannot_be_closed_hides_no_job(
    sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> bool:
        raise OSError("Prefect is gone")

    written = FlowRunLedger._write

    async def write(ledger: FlowRunLedger, notes: dict[str, str]) -> bool:
        closing = any('"pending":false' in note for note in notes.values())
        return await (fail if closing else written)(ledger, notes)

    monkeypatch.setattr(FlowRunLedger, "_write", write)

    @flow
    def parent() -> RunHandle:
        return submit_run(sleeper(), key="not closed")

    assert parent().name == "not closed"
    assert "Prefect did not take a note on 'not closed' (Prefect is gone)" in caplog.text


@pytest.mark.parametrize(
    ("on_timeout", "live", "words"), [("leave", True, "left alone"), ("cancel", False, "were cancelled")]
)
def test_a_timeout_says_what_becomes_of_the_run(
    sandbox: SandboxProcess, on_timeout: Literal["leave", "cancel"], live: bool, words: str
) -> None:
    run = sleeper("birch").trigger(key=f"timeout {on_timeout}")
    with pytest.raises(WaitTimeout, match=words) as caught:
        wait_for_runs([run], timeout=0.1, on_timeout=on_timeout)
    assert caught.value.handles == [run.handle]
    if not live:
        run.wait_for_completion(timeout=30)
    assert run.status().state.is_end is not live


def test_what_cannot_be_cancelled_in_time_is_named(sandbox: SandboxProcess) -> None:
    run = through_the_platform(sleeper()).trigger(key="timeout without a way to cancel")
    with pytest.raises(WaitTimeout, match="Not all were cancelled. May be live: .*cedar-platform"):
        wait_for_runs([run], timeout=0.1, on_timeout="cancel")
