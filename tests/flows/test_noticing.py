"""A flow that was started by hand has no worker: its wait notices that it was cancelled, and ends its runs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefect_mantik.sandbox.process import SandboxProcess
from tests.conftest import PrefectServer

ROOT = Path(__file__).parents[2]


def started(server: PrefectServer, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.flows.pipelines", *arguments],
        env=server.environment(PREFECT_LOGGING_LEVEL="INFO"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("shape", "notice"),
    [("direct", "4"), ("direct", "600"), ("gathered", "600"), ("mapped", "4"), ("nested", "600")],
)
def test_cancelled_in_the_ui(sandbox: SandboxProcess, prefect_server: PrefectServer, shape: str, notice: str) -> None:
    """By a look every four seconds; and by Prefect's event stream, where no look is due for ten minutes."""
    process = started(prefect_server, notice, shape, "train-birch", "train-cedar")
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("ID "))
        root = root_of(prefect_server, line.split()[1])
        until_jobs(sandbox, 2)
        prefect_server.request("POST", f"/flow_runs/{root}/set_state", {"state": {"type": "CANCELLING"}})
        output, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    assert [job["live"] for job in sandbox.control.jobs(live=True)] == []
    assert "This flow run was cancelled: its training runs are ended." in output
    assert output.count("Cancelled training run") == 2
    assert "was cancelled. Its training runs were ended." in output
    assert prefect_server.request("GET", f"/flow_runs/{root}")["state"]["type"] == "CANCELLED"
    assert process.returncode != 0


def root_of(server: PrefectServer, flow_run_id: str) -> str:
    while parent := server.request("GET", f"/flow_runs/{flow_run_id}")["parent_task_run_id"]:
        flow_run_id = server.request("GET", f"/task_runs/{parent}")["flow_run_id"]
    return flow_run_id


def until_jobs(sandbox: SandboxProcess, count: int) -> None:
    deadline = time.monotonic() + 100
    while sum(job["state"] == "RUNNING" for job in sandbox.control.jobs(live=True)) < count:
        assert time.monotonic() < deadline, sandbox.control.jobs()
        time.sleep(0.2)


def test_an_interrupted_wait_ends_its_runs_only_where_the_flow_was_cancelled(
    sandbox: SandboxProcess, prefect_server: PrefectServer
) -> None:
    """SIGTERM: Prefect's cancel is one, a host that shuts down is another."""
    for cancelled in (True, False):
        process = started(prefect_server, "600", "direct", "train-birch")
        try:
            assert process.stdout is not None
            root = next(line for line in process.stdout if line.startswith("ID ")).split()[1]
            until_jobs(sandbox, 1)
            if cancelled:
                prefect_server.request("POST", f"/flow_runs/{root}/set_state", {"state": {"type": "CANCELLING"}})
            process.terminate()
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert ("its training runs are ended" in output) is cancelled
        assert ("What has not ended goes on: training run" in output) is not cancelled
        assert len(sandbox.control.jobs(live=True)) == (0 if cancelled else 1)
