"""prefect.yaml as it is: deployed to a real Prefect server, run through a real worker, with saved blocks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from prefect_mantik.sandbox.process import SandboxProcess
from tests.conftest import PrefectServer

ROOT = Path(__file__).parents[2]


def prefect(server: PrefectServer, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        env=server.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_deployed_with_a_schedule_and_run_by_a_worker_elsewhere(
    sandbox: SandboxProcess, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    prefect(prefect_server, "work-pool", "create", "mantik", "--type", "process")
    prefect(prefect_server, "deploy", "--all")
    path = "/deployments/name/train-across-sites/nightly"
    deployment: dict[str, Any] = prefect_server.request("GET", path)
    assert [entry["schedule"]["cron"] for entry in deployment["schedules"]] == ["0 3 * * *"]
    schema = deployment["parameter_openapi_schema"]["properties"]
    assert all(schema[name].get("description") for name in ("jobs", "metric", "mode", "model_name"))

    # As a person does in the UI: one job by name, one picked from the list of saved blocks.
    picked = prefect_server.document("training-job/train-cedar")["id"]
    parameters = {"jobs": ["train-alder", {"$ref": {"block_document_id": picked}}], "model_name": "deployed"}
    run = prefect_server.request(
        "POST",
        f"/deployments/{deployment['id']}/create_flow_run",
        {"parameters": parameters, "state": {"type": "SCHEDULED"}},
    )
    worker = subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", "mantik", "--run-once"],
        env=prefect_server.environment(PREFECT_LOGGING_LEVEL="INFO"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        state = _ended(prefect_server, run["id"])
        assert state["type"] == "COMPLETED", (state, _logs(prefect_server, run["id"]))
        output, _ = worker.communicate(timeout=60)
    finally:
        worker.kill()
    assert sandbox.env["MANTIK_PASSWORD"] not in output
    text = _logs_until(prefect_server, run["id"], "registered as deployed version 1")
    assert "at alder: FINISHED" in text
    assert "at cedar: FINISHED" in text


def _logs_until(server: PrefectServer, flow_run_id: str, last: str) -> str:
    """Logs reach the server a little after the state."""
    deadline = time.monotonic() + 20
    while last not in (text := "\n".join(_logs(server, flow_run_id))):
        assert time.monotonic() < deadline, text
        time.sleep(0.5)
    return text


def _ended(server: PrefectServer, flow_run_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        state: dict[str, Any] = server.request("GET", f"/flow_runs/{flow_run_id}")["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return state
        time.sleep(0.5)
    raise AssertionError(f"{state}, {_logs(server, flow_run_id)}")


def _logs(server: PrefectServer, flow_run_id: str) -> list[str]:
    found = server.request("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "limit": 200})
    return [entry["message"] for entry in found]
