"""A process that submits one run under a given root flow run, for tests that kill it.

Arguments: the root flow run's id, and the job's name (default: train-alder).
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from uuid import UUID

from prefect_mantik.documents import aload_block
from prefect_mantik.jobs import TrainingJob
from prefect_mantik.ledger import FlowRunLedger, origin
from prefect_mantik.loop import call
from prefect_mantik.runs import RunHandle, RunKey

PATIENCE = 280.0
"""Seconds for a submit that goes on where a killed one stopped: it may wait for a slot, and for what a site knows."""

_LONG = 90.0


def handle_of(process: subprocess.Popen[str]) -> RunHandle:
    """What it submitted."""
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
    line = next((line for line in output.splitlines() if line.startswith("HANDLE ")), None)
    assert line is not None, errors
    return RunHandle.model_validate_json(line.removeprefix("HANDLE "))


def _tell() -> None:
    """Say where all of it stands."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr, limit=8)
    sys.stderr.flush()


async def submit(root: UUID, name: str = "train-alder") -> RunHandle:
    asyncio.get_running_loop().call_later(_LONG, _tell)
    job = await aload_block(TrainingJob, name)
    job = job.model_copy(update={"entry_point": "sleep", "parameters": {"seconds": 60}})
    key = RunKey(name="killed", origin=await origin(), root_flow_run_id=root)
    return await job.site.open(job.project).submit(job.spec(), key, ledger=FlowRunLedger(root))


if __name__ == "__main__":
    logging.getLogger("prefect.mantik").setLevel(logging.INFO)
    root, *names = sys.argv[1:]
    print("HANDLE " + call(submit, UUID(root), *names).model_dump_json(), flush=True)
