"""The automation that turns flow runs of a dead host into Crashed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import pytest
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Running, Suspended

from prefect_mantik import crash_runs_of_dead_hosts, watch_runs
from prefect_mantik.kept import LABEL, Execution, Wait
from prefect_mantik.ledger import FlowRunLedger
from prefect_mantik.lifecycle.heartbeat import AUTOMATION
from prefect_mantik.loop import call
from tests.conftest import PrefectServer
from tests.flows.suspended import deployment_of
from tests.test_kept import handle_of

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


@pytest.mark.timeout(240)
def test_a_suspended_flow_run_is_not_missed(prefect_server: PrefectServer) -> None:
    """Neither after its last heartbeat, nor when that comes later than the word that it is suspended.

    A third one that nobody watches shows that the events are such as the automation heeds.
    """
    crash_runs_of_dead_hosts(within=20, flows=["killed"])
    deployment_of("killed", "served-by-nobody").apply()
    in_order, late, nobodys = (call(suspended_run) for _ in range(3))
    try:
        for id in (in_order, late, nobodys):
            beat(id)
        time.sleep(2)
        for id in (in_order, late, nobodys):
            call(suspend, id, "a-persons-key" if id == nobodys else KEY)
        time.sleep(2)
        for id in (late, nobodys):
            beat(id)
        time.sleep(2)
        assert {each.id for each in watch_runs().waiting} >= {in_order, late}
        deadline = time.monotonic() + 90
        while name_of(prefect_server, nobodys) != "Crashed":
            assert time.monotonic() < deadline
            time.sleep(1)
        time.sleep(6)  # Prefect looks every five seconds
        assert [name_of(prefect_server, id) for id in (in_order, late)] == ["Suspended", "Suspended"]
    finally:
        Automation.read(name=AUTOMATION).delete()  # type: ignore[attr-defined]
        for id in (in_order, late, nobodys):
            prefect_server.request("DELETE", f"/flow_runs/{id}")


KEY = "mantik-a-1"


async def suspended_run() -> UUID:
    """A flow run that is about to be suspended, and waits for a run of which nobody can tell."""
    handle = handle_of(0).model_copy(update={"site": "unicore-site/nowhere"})
    async with get_client() as client:
        id = (await client.read_deployment_by_name("killed/served-by-nobody")).id
        run = await client.create_flow_run_from_deployment(id, parameters={"mark": "none"}, state=Running())
        kept = Execution(run.id, None, open=[Wait([handle], None)], key=KEY).kept()
        assert await FlowRunLedger(run.id).keep(LABEL, kept.written())
    return run.id


async def suspend(id: UUID, key: str) -> None:
    async with get_client() as client:
        await client.set_flow_run_state(id, Suspended(pause_key=key), force=True)


def beat(id: UUID) -> None:
    """As Prefect's engine does."""
    flow = {"prefect.resource.id": "prefect.flow.x", "prefect.resource.role": "flow", "prefect.resource.name": "killed"}
    resource = {"prefect.resource.id": f"prefect.flow-run.{id}"}
    emit_event("prefect.flow-run.heartbeat", resource=resource, related=[flow])


def name_of(server: PrefectServer, id: UUID) -> str:
    return str(server.request("GET", f"/flow_runs/{id}")["state"]["name"])
