"""The example flow, as it is, on a real Prefect server, a real MLflow and sites that really train."""

from __future__ import annotations

import asyncio
import re
import time
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, Log
from prefect.states import State

from prefect_mantik import MantikCredentials, TrainingJob
from prefect_mantik.errors import LoginRefused, MetricMissing, RunsFailed, SubmitsFailed, WaitTimeout
from prefect_mantik.flows.train_across_sites import train_across_sites
from prefect_mantik.sandbox.process import SandboxProcess

JOBS = ["train-alder", "train-birch", "train-cedar"]


def run(jobs: list[TrainingJob | str], **parameters: object) -> State:
    return train_across_sites(jobs, return_state=True, **parameters)


def none_live(sandbox: SandboxProcess) -> bool:
    """MLflow may call a run finished a moment before its job has ended."""
    deadline = time.monotonic() + 20
    while sandbox.control.jobs(live=True) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not sandbox.control.jobs(live=True)


async def comparisons(flow_run_id: UUID | None) -> list[Artifact]:
    assert flow_run_id is not None
    async with get_client() as client:
        return await client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]),
                key=ArtifactFilterKey(any_=["mantik-comparison"]),
            )
        )


async def latest_flow_run() -> FlowRun:
    async with get_client() as client:
        return (await client.read_flow_runs(limit=1, sort="START_TIME_DESC"))[0]


def test_trains_compares_and_registers(sandbox: SandboxProcess) -> None:
    state = run(list(JOBS), model_name="digits-test")
    result = state.result()
    assert (result["runs"], result["sites"], result["finished"], result["version"]) == (3, 3, 3, "1")
    assert result["best_site"] in ("alder", "birch", "cedar")
    assert 0 < result["value"] < 3


async def test_the_comparison_is_one_artifact_with_links(sandbox: SandboxProcess) -> None:
    flow_run = await latest_flow_run()
    found = await comparisons(flow_run.id)
    assert len(found) == 1
    text = str(found[0].data)
    assert text.startswith("3 of 3 training runs finished. Best val_loss:")
    assert len(re.findall(rf"\]\({sandbox.tracking_uri}#/experiments/\d+/runs/[0-9a-f]{{32}}\)", text)) == 3
    assert "Registered as [digits-test version 1]" in text


async def test_the_logs_show_changes_and_no_secret(sandbox: SandboxProcess) -> None:
    flow_run = await latest_flow_run()
    deadline = time.monotonic() + 20  # Prefect sends log lines on their way when it sees fit
    while True:
        async with get_client() as client:
            logs: list[Log] = await client.read_logs(
                log_filter=LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run.id])), limit=200
            )
        messages = [log.message for log in logs]
        if len([line for line in messages if "FINISHED after" in line]) == 3 or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    for site in ("alder", "birch", "cedar"):
        assert len([line for line in messages if f"at {site}: FINISHED after" in line]) == 1
    assert len(messages) < 60
    secrets = [
        value
        for name, value in sandbox.env.items()
        if name.endswith(("PASSWORD", "CONTROL_TOKEN", "CLIENT_SECRET")) or "CONNECTION_ID" in name
    ]
    assert len(secrets) == 7
    assert not [line for line in messages for secret in secrets if secret in line]
    assert not [line for line in messages if "eyJ" in line]


def test_one_of_three_fails_and_the_others_are_kept(sandbox: SandboxProcess) -> None:
    bad = TrainingJob.load("train-birch").model_copy(update={"entry_point": "fail", "parameters": {"code": 3}})
    before = len(sandbox.control.jobs())
    state = run(["train-alder", bad, "train-cedar"], model_name="never-registered")
    with pytest.raises(RunsFailed) as caught:
        state.result()
    assert str(caught.value).startswith(
        "1 of 3 training runs did not finish: training run 'train-1' at birch is FAILED"
    )
    assert [result.finished for result in caught.value.results] == [True, False, True]
    assert len(sandbox.control.jobs()) == before + 3
    assert none_live(sandbox)


async def test_the_comparison_shows_the_failed_run_beside_the_others(sandbox: SandboxProcess) -> None:
    text = str((await comparisons((await latest_flow_run()).id))[0].data)
    assert text.startswith("2 of 3 training runs finished.")
    assert "FAILED" in text
    assert "Registered" not in text


def test_one_of_three_is_refused_and_the_others_are_waited_for(sandbox: SandboxProcess) -> None:
    bad = TrainingJob.load("train-birch").model_copy(update={"entry_point": "nonsense"})
    state = run(["train-alder", bad])
    with pytest.raises(
        SubmitsFailed,
        match="1 of 2 training runs were not submitted .submitted or found: train-0.: train-1: .*nonsense",
    ) as caught:
        state.result()
    assert list(caught.value.handles) == ["train-0"]
    assert none_live(sandbox)


def test_a_run_without_metrics_is_named(sandbox: SandboxProcess) -> None:
    silent = TrainingJob.load("train-alder").model_copy(update={"entry_point": "silent", "parameters": {}})
    with pytest.raises(MetricMissing, match="None of 1 training runs has a finite value of the metric 'val_loss'"):
        run([silent]).result()


def test_a_wrong_password_fails_in_the_first_second(sandbox: SandboxProcess) -> None:
    job = TrainingJob.load("train-alder")
    wrong = job.project.credentials.model_copy(
        update={"password": MantikCredentials(username="x", password="no").password}
    )
    job = job.model_copy(update={"project": job.project.model_copy(update={"credentials": wrong})})
    state = run([job])
    with pytest.raises(LoginRefused, match="refused the login of 'sandbox'"):
        state.result()


def test_the_time_to_wait_may_be_limited_and_the_runs_go_on(sandbox: SandboxProcess) -> None:
    endless = TrainingJob.load("train-birch").model_copy(
        update={"entry_point": "sleep", "parameters": {"seconds": 300}}
    )
    with pytest.raises(WaitTimeout, match="left alone"):
        run([endless], timeout=1).result()
    assert len(sandbox.control.jobs(live=True)) == 1


def test_a_flow_run_that_nobody_could_resume_holds_its_process(
    sandbox: SandboxProcess, caplog: pytest.LogCaptureFixture
) -> None:
    result = run(["train-birch"], wait="suspend").result()
    assert (result["finished"], result["best_site"]) == (1, "birch")
    assert "cannot be suspended: it has no deployment" in caplog.text
