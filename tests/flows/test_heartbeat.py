"""The automation that turns flow runs of a dead host into Crashed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.automations import Automation

from prefect_mantik import crash_runs_of_dead_hosts
from prefect_mantik.lifecycle.heartbeat import AUTOMATION
from tests.conftest import PrefectServer

ROOT = Path(__file__).parents[2]


def test_it_is_made_once_and_updated(prefect_server: PrefectServer) -> None:
    first = crash_runs_of_dead_hosts(within=120)
    assert crash_runs_of_dead_hosts(within=300, flows=["train-across-sites"]) == first
    made = [entry for entry in prefect_server.request("POST", "/automations/filter", {}) if entry["name"] == AUTOMATION]
    assert [(entry["id"], entry["trigger"]["within"], entry["enabled"]) for entry in made] == [
        (str(first), 300.0, True)
    ]
    assert made[0]["trigger"]["match_related"]["prefect.resource.name"] == ["train-across-sites"]


@pytest.mark.timeout(240)
def test_a_flow_run_that_was_killed_becomes_crashed(prefect_server: PrefectServer) -> None:
    crash_runs_of_dead_hosts(within=15)
    code = (
        "import time; from prefect import flow; from prefect.runtime import flow_run\n"
        "@flow(name='of a dead host')\ndef lives():\n    print('ID', flow_run.id, flush=True); time.sleep(300)\nlives()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=prefect_server.environment(PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    flow_run_id = next(line for line in process.stdout if line.startswith("ID ")).split()[1]
    try:
        time.sleep(3)  # its first heartbeat is on its way
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 120
        while (state := prefect_server.request("GET", f"/flow_runs/{flow_run_id}")["state"])["type"] != "CRASHED":
            assert time.monotonic() < deadline, state
            time.sleep(1)
    finally:
        process.kill()
        Automation.read(name=AUTOMATION).delete()  # type: ignore[attr-defined]
    assert "its training runs are found again" in state["message"]
