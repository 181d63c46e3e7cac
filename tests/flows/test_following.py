"""Logs of jobs within a flow run, on a real Prefect server: lines in its log, one artifact, one file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from markdown_it import MarkdownIt
from prefect import flow
from prefect.runtime import flow_run

from prefect_mantik import TrainingJob, submit_run
from prefect_mantik.log_artifacts import publish_log
from prefect_mantik.loop import call
from prefect_mantik.runs import RunHandle
from prefect_mantik.sandbox.process import SandboxProcess
from prefect_mantik.sites.opening import site_of
from prefect_mantik.waiting import following
from prefect_mantik.waiting.following import log_follower
from prefect_mantik.waiting.observing import Observed
from tests.conftest import PrefectServer


async def follow(handle: RunHandle, directory: Path | None) -> None:
    """As a wait does."""
    site, follower, ended = await site_of(handle), log_follower(directory=directory, publish=publish_log), False
    while not ended:
        seen = {run: Observed(site, status) for run, status in (await site.poll([handle])).items()}
        await follower.look(seen)
        ended = all(observed.status and observed.status.state.is_end for observed in seen.values())
        await asyncio.sleep(0.2)
    await follower.close(seen)


@flow
def followed(name: str, directory: Path | None = None) -> str:
    job = TrainingJob.load(name).model_copy(update={"entry_point": "fail", "parameters": {}})
    call(follow, submit_run(job, key="train"), directory)
    return str(flow_run.id)


def until(server: PrefectServer, path: str, body: dict[str, Any], found: Callable[[list[Any]], bool]) -> list[Any]:
    """Prefect sends log lines on their way when it sees fit."""
    deadline = time.monotonic() + 20
    while True:
        answer: list[Any] = server.request("POST", path, body)
        if found(answer) or time.monotonic() > deadline:
            return answer
        time.sleep(0.3)


def messages(server: PrefectServer, flow_run_id: str) -> list[str]:
    body = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_ASC"}
    logs = until(server, "/logs/filter", body, lambda logs: any("fail: run" in log["message"] for log in logs))
    return [log["message"] for log in logs]


def artifacts(server: PrefectServer, flow_run_id: str) -> list[Any]:
    body = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}, "key": {"like_": "mantik-log"}}}
    return until(server, "/artifacts/filter", body, bool)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "SHORTEST", 0.0)
    monkeypatch.setattr(following, "READS_A_SECOND", 1000.0)


@pytest.mark.parametrize("job", ["train-alder", "train-birch", "train-cedar"])
def test_lines_are_in_the_flow_runs_log_and_the_end_is_one_artifact(
    sandbox: SandboxProcess, prefect_server: PrefectServer, job: str
) -> None:
    id = followed(job)
    site = job.removeprefix("train-")
    lines = [line for line in messages(prefect_server, id) if line.startswith(f"train at {site} | ")]
    assert any(line.startswith(f"train at {site} | fail: run ") for line in lines)
    assert not any("eyJ" in line for line in lines)
    [artifact] = artifacts(prefect_server, id)
    assert artifact["key"] == f"mantik-log-train-{site}"
    assert artifact["type"] == "markdown"
    block = MarkdownIt("commonmark").parse(artifact["data"])[-1]
    assert block.type == "fence"
    assert block.content.splitlines() == [line.partition(" | ")[2] for line in lines]
    assert UUID(artifact["flow_run_id"]) == UUID(id)


def test_with_a_directory_there_is_a_file_and_no_artifact(
    sandbox: SandboxProcess, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    id = followed("train-cedar", tmp_path)
    assert any("train at cedar | fail: run " in line for line in messages(prefect_server, id))
    assert "fail: run " in (tmp_path / id / "train-cedar-1.log").read_text()
    assert prefect_server.request("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [id]}}}) == []
