"""A process that submits one run under a given root flow run, for tests that kill it.

Arguments: the root flow run's id, and the job's name (default: train-alder).
"""

from __future__ import annotations

import sys
from uuid import UUID

from prefect_mantik.documents import aload_block
from prefect_mantik.jobs import TrainingJob
from prefect_mantik.ledger import FlowRunLedger, origin
from prefect_mantik.loop import call
from prefect_mantik.runs import RunHandle, RunKey


async def submit(root: UUID, name: str = "train-alder") -> RunHandle:
    job = await aload_block(TrainingJob, name)
    job = job.model_copy(update={"entry_point": "sleep", "parameters": {"seconds": 60}})
    key = RunKey(name="killed", origin=await origin(), root_flow_run_id=root)
    return await job.site.open(job.project).submit(job.spec(), key, ledger=FlowRunLedger(root))


if __name__ == "__main__":
    root, *names = sys.argv[1:]
    print("HANDLE " + call(submit, UUID(root), *names).model_dump_json(), flush=True)
