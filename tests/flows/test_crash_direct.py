"""SIGKILL while a run is sent to a site directly, then again: one job, which runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from prefect_mantik import FirecrestSite, TrainingRun
from prefect_mantik.documents import aload_block
from prefect_mantik.ledger import FlowRunLedger, origin
from prefect_mantik.loop import call
from prefect_mantik.runs import RunKey, RunState
from prefect_mantik.sandbox.process import SandboxProcess
from prefect_mantik.sites.tracked import KEY_TAG
from tests.conftest import PrefectServer
from tests.contract.conftest import ALL, Road, UnicoreRoad, sandbox_firecrest
from tests.flows.submit_once import handle_of
from tests.sandbox_jobs import credentials

ROOT = Path(__file__).parents[2]


class Site(NamedTuple):
    """A site that is reached directly.

    Attributes:
        saved: Its block.
        job: The training job there.
        jobs: The route that takes jobs.
    """

    saved: str
    job: str
    jobs: str


BIRCH = Site("unicore-site/birch", "train-birch", "/BIRCH/rest/core/jobs")
CEDAR = Site("firecrest-site/cedar", "train-cedar", "/firecrest/v2/compute/{system}/jobs")
FILES_OF_BIRCH = "/BIRCH/rest/core/storages/{storageId}/files/{path}"
FILES_OF_CEDAR = "/firecrest/v2/filesystem/{system}/ops/upload"
NO_CHANNEL = {
    "errorType": "error",
    "message": "('Channel not open for sending',)",
    "causedBy": None,
    "data": None,
    "user": None,
}
SETTLE = 8.0
"""Seconds without a trace that prove at cedar that there is no job, for a test that cannot wait for a minute."""


@flow
def pipeline() -> None:
    """Only gives its name to a flow run."""


async def _new_flow_run() -> UUID:
    async with get_client() as client:
        return (await client.create_flow_run(pipeline)).id


def _start(server: PrefectServer, root: UUID, job: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.flows.submit_once", str(root), job],
        env=server.environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _birch(sandbox: SandboxProcess) -> UnicoreRoad:
    env = sandbox.env
    return UnicoreRoad(
        sandbox,
        ALL,
        url=env["MANTIK_SANDBOX_BIRCH_URL"],
        username=env["MANTIK_UNICORE_USERNAME"],
        password=env["MANTIK_UNICORE_PASSWORD"],
    )


@pytest.fixture
def road(request: pytest.FixtureRequest, sandbox: SandboxProcess) -> Iterator[Road]:
    """The site's own books, read past our client. Cedar settles fast for the time of a test."""
    made = _birch(sandbox) if request.getfixturevalue("site") is BIRCH else sandbox_firecrest(sandbox)
    saved = call(aload_block, FirecrestSite, "cedar")
    saved.model_copy(update={"settle": SETTLE}).save("cedar", overwrite=True)
    yield made
    saved.save("cedar", overwrite=True)
    sandbox.control.clear_faults()
    made.end_jobs()


@pytest.mark.parametrize(
    ("site", "faults", "was_taken"),
    [
        pytest.param(
            site,
            [{"action": "delay_after", "seconds": 30, "method": "POST", "route": site.jobs}],
            False,
            id=f"{site.job}: the answer was under way",
        )
        for site in (BIRCH, CEDAR)
    ]
    + [
        pytest.param(
            site,
            [{"action": "late", "status": None, "seconds": 4, "method": "POST", "route": site.jobs}],
            False,
            id=f"{site.job}: and the site took it later",
        )
        for site in (BIRCH, CEDAR)
    ]
    + [
        pytest.param(
            BIRCH,
            [{"action": "delay_before", "seconds": 30, "times": None, "method": "PUT", "route": FILES_OF_BIRCH}],
            True,  # UNICORE takes a job before its files
            id="train-birch: the files were under way",
        ),
        pytest.param(
            CEDAR,
            [{"action": "delay_before", "seconds": 30, "times": None, "method": "POST", "route": FILES_OF_CEDAR}],
            False,
            id="train-cedar: the files were under way",
        ),
        pytest.param(
            CEDAR,
            [
                {
                    "action": "status_after",
                    "status": 500,
                    "body": json.dumps(NO_CHANNEL),
                    "method": "POST",
                    "route": CEDAR.jobs,
                },
                # The look before the POST passes.
                {"action": "delay_before", "seconds": 30, "skip": 1, "method": "GET", "route": CEDAR.jobs},
            ],
            False,
            id="train-cedar: it was looking, after an answer that says nothing",
        ),
    ],
)
def test_one_job_that_runs(
    road: Road, prefect_server: PrefectServer, site: Site, faults: list[dict[str, Any]], was_taken: bool
) -> None:
    control, root = road.sandbox.control, call(_new_flow_run)
    key = RunKey(name="killed", origin=call(origin), root_flow_run_id=root)
    ledger = FlowRunLedger(root)
    for fault in faults:
        control.add_fault(**fault)

    victim = _start(prefect_server, root, site.job)
    deadline = time.monotonic() + 60
    while not all(fault["used"] for fault in control.call("GET", "/faults")):
        assert time.monotonic() < deadline, victim.communicate()
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.05)
    victim.kill()
    victim.communicate()
    announced = call(ledger.notes)[key.site_key]
    assert (announced.pending, announced.attempt, announced.site) == (True, 1, site.saved)
    assert bool(announced.receipt) is was_taken
    control.clear_faults()

    handle = handle_of(_start(prefect_server, root, site.job))
    assert (handle.key, handle.site) == (key, site.saved)
    assert announced.receipt in (None, handle.remote_id)
    assert [job["id"] for job in road.jobs(key)] == [handle.remote_id]
    assert not call(ledger.notes)[key.site_key].pending
    tracking = credentials(road.sandbox).tracking_client()
    runs = call(tracking.runs_tagged, KEY_TAG, key.site_key, [str(handle.mlflow_experiment_id)])
    assert [run.run_id for run in runs] == [handle.mlflow_run_id]
    deadline = time.monotonic() + 30
    while TrainingRun(handle).status().state is not RunState.RUNNING:
        assert time.monotonic() < deadline, TrainingRun(handle).status()
        time.sleep(0.2)
    TrainingRun(handle).cancel()
