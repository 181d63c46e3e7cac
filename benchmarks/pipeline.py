"""Many runs through submit, wait and gather in a flow, over a bare asyncio + httpx script with calls of the same kinds.

Both at a UNICORE site of the sandbox, which really runs the jobs, with a real Prefect server for ours. The bare script
looks for nothing that it does not need: no key, no note, no repeats, no flow.

    python benchmarks/pipeline.py [runs] [rounds]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.prefect_traffic import prefect_server
from benchmarks.report import Row, report
from prefect_mantik.block_files import asave_blocks, read_block_file
from prefect_mantik.loop import call
from prefect_mantik.sandbox.process import SandboxProcess, start_sandbox
from tests.sandbox_jobs import credentials

ROOT = Path(__file__).parents[1]
RUNS, ROUNDS, IN_FLIGHT = 200, 5, 4
CODE = b"\0" * 4096
"""In place of the packed code: some kilobytes."""

QUIET = {"PREFECT_INTEGRATIONS_MANTIK_FOLLOW_LOGS": "false", "PREFECT_INTEGRATIONS_MANTIK_PROGRESS": "false"}


class Bare:
    """The calls of a pipeline, made by hand; four at a time at each of both servers, as ours."""

    def __init__(self, sandbox: SandboxProcess, token: str) -> None:
        env, self.requests = sandbox.env, 0
        limits = httpx.Limits(max_connections=IN_FLIGHT)
        login = httpx.BasicAuth(env["MANTIK_UNICORE_USERNAME"], env["MANTIK_UNICORE_PASSWORD"])
        self._site = httpx.AsyncClient(
            base_url=env["MANTIK_SANDBOX_BIRCH_URL"], auth=login, limits=limits, trust_env=False, timeout=None
        )
        self._mlflow = httpx.AsyncClient(
            base_url=f"{env['MLFLOW_TRACKING_URI'].rstrip('/')}/api/2.0/mlflow",
            headers={"Authorization": f"Bearer {token}"},
            limits=limits,
            trust_env=False,
            timeout=None,
        )

    async def run_all(self, runs: int) -> None:
        """Submit all, wait for all, gather all."""
        name = f"bare-{time.time_ns()}"
        self._experiment = (await self._track("POST", "/experiments/create", {"name": name}))["experiment_id"]
        submitted = await asyncio.gather(*(self._submit(f"pm-{name}-{number}") for number in range(runs)))
        await asyncio.gather(*(self._until_ended(job) for job, _ in submitted))
        await asyncio.gather(*(self._close(run) for _, run in submitted))
        ids = ", ".join(f"'{run}'" for _, run in submitted)
        query = {"experiment_ids": [self._experiment], "filter": f"attributes.run_id IN ({ids})", "max_results": 1000}
        await self._track("POST", "/runs/search", query)
        await self._site.aclose()
        await self._mlflow.aclose()

    async def _submit(self, tag: str) -> tuple[str, str]:
        await self._ask("GET", "/jobs", params={"tags": tag})
        query = {"experiment_ids": [self._experiment], "filter": f"attributes.run_name LIKE '%{tag}%'"}
        for _ in range(2):  # what the site forgot; what an earlier try made
            await self._track("POST", "/runs/search", query)
        run = await self._track("POST", "/runs/create", {"experiment_id": self._experiment, "run_name": tag})
        id = run["run"]["info"]["run_id"]
        await self._track("POST", "/runs/update", {"run_id": id, "status": "SCHEDULED"})
        script = "sleep 0.1\n"
        job = {"Name": tag, "Tags": [tag], "haveClientStageIn": "true", "Executable": "bash", "Arguments": ["bare.sh"]}
        job["Imports"] = [{"To": "bare.sh", "Data": script}, {"To": "token", "Data": "-"}]
        job["Resources"] = {"Queue": "batch", "Runtime": "5m", "Nodes": 1}
        path = httpx.URL((await self._ask("POST", "/jobs", json=job)).headers["Location"]).path.rpartition("/")[2]
        files = f"/storages/{path}-uspace/files"
        await self._ask("PUT", f"{files}/code", content=CODE)
        await self._ask("PUT", f"{files}/token", content=b"a token")
        await self._ask("POST", f"/jobs/{path}/actions/start", json={})
        await self._ask("GET", "/jobs", params={"tags": tag})
        return path, id

    async def _until_ended(self, job: str) -> None:
        while True:
            found = (await self._ask("GET", f"/jobs/{job}", params={"fields": "status"})).json()
            if found["status"] in ("SUCCESSFUL", "FAILED"):
                return
            await asyncio.sleep(1.0)

    async def _close(self, run: str) -> None:
        await self._track("GET", "/runs/get", {"run_id": run})
        await self._track("POST", "/runs/update", {"run_id": run, "status": "FINISHED"})

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Accept": "application/json"}
        if method == "PUT":
            headers["Content-Type"] = "application/octet-stream"
        while True:
            self.requests += 1
            answer = await self._site.request(method, path, headers=headers, **options)
            if method != "PUT" or not answer.is_server_error:
                return answer.raise_for_status()
            await asyncio.sleep(0.2)  # the job has no directory yet

    async def _track(self, method: str, path: str, body: dict[str, Any]) -> Any:
        options: dict[str, Any] = {"params": body} if method == "GET" else {"json": body}
        self.requests += 1
        answer = await self._mlflow.request(method, path, **options)
        return answer.raise_for_status().json()


def ours(runs: int) -> dict[str, Any]:
    """Our flow in a process of its own; what it says of its time."""
    command = [sys.executable, str(ROOT / "benchmarks" / "pipeline_flow.py"), str(runs)]
    environment = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT), "PREFECT_LOGGING_LEVEL": "ERROR"}
    environment["PREFECT_API_URL"] = _api_url()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=900)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _api_url() -> str:
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())


def bare(sandbox: SandboxProcess, token: str, runs: int) -> tuple[float, int]:
    """Seconds of the bare script, and its requests."""
    began, script = time.monotonic(), Bare(sandbox, token)
    asyncio.run(script.run_all(runs))
    return time.monotonic() - began, script.requests


def main() -> int:
    """Measure and report."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS
    mine, theirs = [], []
    with contextlib.ExitStack() as stack:
        os.environ["PREFECT_HOME"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="pipeline-"))
        stack.enter_context(prefect_server())
        sandbox = stack.enter_context(start_sandbox(slots=4, queue_delay=0.1))
        call(asave_blocks, read_block_file(ROOT / "blocks" / "sandbox.yaml"), sandbox.env)
        token = call(credentials(sandbox).tracking_client().tokens.token)
        for number in range(rounds):
            for whose in ("ours", "bare") if number % 2 == 0 else ("bare", "ours"):
                if whose == "ours":
                    mine.append(ours(runs))
                else:
                    theirs.append(bare(sandbox, token, runs))
    seconds = statistics.median(one["submit"] + one["wait"] + one["gather"] for one in mine)
    peer, last = statistics.median(one for one, _ in theirs), mine[-1]
    spent = ", ".join(f"{name} {last[name]:.0f} s" for name in ("submit", "wait", "gather"))
    asked = ", ".join(
        f"{count} of {whom} ({last['seconds'][whom] / count * 1000:.0f} ms each)"
        for whom, count in last["requests"].items()
    )
    note = (
        "UNICORE at the sandbox; the peer makes calls of the same kinds at site and MLflow, four at a time each, "
        f"without Prefect, keys, notes or checks; median of {rounds}, in turn. Ours in the last round: {spent}; "
        f"the peer's requests: {theirs[-1][1]}; ours: CPU {last['cpu']:.0f} s; "
        f"requests: {asked}"
    )
    report(
        Row(f"pipeline of {runs} runs, beside a bare script", seconds, peer, seconds / peer, "", None, "s", note),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
