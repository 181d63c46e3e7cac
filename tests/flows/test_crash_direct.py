"""SIGKILL while a run is sent to a UNICORE site directly, then again: one job, which runs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from prefect_mantik import TrainingRun
from prefect_mantik.ledger import FlowRunLedger, origin
from prefect_mantik.loop import call
from prefect_mantik.runs import RunHandle, RunKey, RunState
from prefect_mantik.sandbox.process import SandboxProcess
from prefect_mantik.sites.tracked import KEY_TAG
from tests.conftest import PrefectServer
from tests.contract.conftest import ALL, UnicoreRoad
from tests.sandbox_jobs import credentials

ROOT = Path(__file__).parents[2]
JOBS = "/BIRCH/rest/core/jobs"
FILES = "/BIRCH/rest/core/storages/{storageId}/files/{path}"


@flow
def pipeline() -> None:
    """Only gives its name to a flow run."""


async def _new_flow_run() -> UUID:
    async with get_client() as client:
        return (await client.create_flow_run(pipeline)).id


def _start(server: PrefectServer, root: UUID) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.flows.submit_once", str(root), "train-birch"],
        env=server.environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def birch(sandbox: SandboxProcess) -> Iterator[UnicoreRoad]:
    """The site's own books, read past our client."""
    env = sandbox.env
    road = UnicoreRoad(
        sandbox,
        ALL,
        url=env["MANTIK_SANDBOX_BIRCH_URL"],
        username=env["MANTIK_UNICORE_USERNAME"],
        password=env["MANTIK_UNICORE_PASSWORD"],
    )
    yield road
    sandbox.control.clear_faults()
    road.end_jobs()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            {"action": "delay_after", "seconds": 30, "method": "POST", "route": JOBS}, id="the answer was under way"
        ),
        pytest.param(
            {"action": "late", "status": None, "seconds": 4, "method": "POST", "route": JOBS},
            id="and the site took it later",
        ),
        pytest.param(
            {"action": "delay_before", "seconds": 30, "times": None, "method": "PUT", "route": FILES},
            id="the files were under way",
        ),
    ],
)
def test_one_job_that_runs(birch: UnicoreRoad, prefect_server: PrefectServer, fault: dict[str, Any]) -> None:
    control, root = birch.sandbox.control, call(_new_flow_run)
    key = RunKey(name="killed", origin=call(origin), root_flow_run_id=root)
    ledger = FlowRunLedger(root)
    control.add_fault(**fault)

    victim = _start(prefect_server, root)
    deadline = time.monotonic() + 60
    while not control.call("GET", "/faults")[0]["used"]:
        assert time.monotonic() < deadline, victim.communicate()
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.05)
    victim.kill()
    victim.communicate()
    announced = call(ledger.announced, key)
    assert announced is not None
    assert (announced.attempt, announced.site) == (1, "unicore-site/birch")
    assert bool(announced.receipt) is (fault["method"] == "PUT")
    control.clear_faults()

    output, errors = _start(prefect_server, root).communicate(timeout=100)
    line = next((line for line in output.splitlines() if line.startswith("HANDLE ")), None)
    assert line is not None, errors
    handle = RunHandle.model_validate_json(line.removeprefix("HANDLE "))
    assert (handle.key, handle.site) == (key, "unicore-site/birch")
    assert announced.receipt in (None, handle.remote_id)
    assert [job["id"] for job in birch.jobs(key)] == [handle.remote_id]
    assert call(ledger.announced, key) is None
    tracking = credentials(birch.sandbox).tracking_client()
    runs = call(tracking.runs_tagged, KEY_TAG, key.site_key, [str(handle.mlflow_experiment_id)])
    assert [run.run_id for run in runs] == [handle.mlflow_run_id]
    deadline = time.monotonic() + 30
    while TrainingRun(handle).status().state is not RunState.RUNNING:
        assert time.monotonic() < deadline, TrainingRun(handle).status()
        time.sleep(0.2)
    TrainingRun(handle).cancel()
