"""SIGKILL between the platform's accept and our record, then again: one run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from prefect_mantik.ledger import FlowRunLedger, origin
from prefect_mantik.loop import call
from prefect_mantik.runs import RunKey
from prefect_mantik.sandbox.process import SandboxProcess
from tests.conftest import PrefectServer
from tests.flows.submit_once import handle_of

ROOT = Path(__file__).parents[2]


@flow
def pipeline() -> None:
    """Only gives its name to a flow run."""


async def _new_flow_run() -> UUID:
    async with get_client() as client:
        return (await client.create_flow_run(pipeline)).id


def _start(server: PrefectServer, root: UUID) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.flows.submit_once", str(root)],
        env=server.environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _jobs(sandbox: SandboxProcess, key: RunKey) -> list[dict[str, Any]]:
    return [job for job in sandbox.control.jobs() if (job["runKey"] or "").startswith(key.site_key)]


@pytest.mark.parametrize(
    ("switches", "fault"),
    [
        pytest.param({}, {"action": "delay_after", "seconds": 30}, id="the answer was under way"),
        pytest.param(
            {"run_appears": "later", "run_appears_after": 8.0},
            {"action": "delay_after", "seconds": 30},
            id="and the run is not visible yet",
        ),
        pytest.param({}, {"action": "late", "status": None, "seconds": 6}, id="and the platform took it later"),
    ],
)
def test_one_run(
    sandbox: SandboxProcess, prefect_server: PrefectServer, switches: dict[str, Any], fault: dict[str, Any]
) -> None:
    root = call(_new_flow_run)
    key = RunKey(name="killed", origin=call(origin), root_flow_run_id=root)
    ledger = FlowRunLedger(root)
    sandbox.control.switch(**switches)
    sandbox.control.add_fault(method="POST", route="/projects/{projectId}/runs", **fault)

    victim = _start(prefect_server, root)
    deadline = time.monotonic() + 60
    while key.site_key not in call(ledger.notes) or not _posted(sandbox, fault):
        assert time.monotonic() < deadline, victim.communicate()
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.05)
    victim.kill()
    victim.communicate()
    note = call(ledger.notes)[key.site_key]
    assert (note.pending, note.attempt, note.site) == (True, 1, "mantik-site/alder")
    sandbox.control.clear_faults()

    handle = handle_of(_start(prefect_server, root))
    assert handle.key == key
    assert [job["mlflowRunId"] for job in _jobs(sandbox, key)] == [handle.remote_id]
    assert not call(ledger.notes)[key.site_key].pending


def _posted(sandbox: SandboxProcess, fault: dict[str, Any]) -> bool:
    """Whether the POST reached the platform."""
    rules = sandbox.control.call("GET", "/faults")
    return all(rule["used"] for rule in rules if rule["action"] == fault["action"])
