"""A flow that submits many tiny runs and waits for them: `python -m tests.scale.many_runs 30`."""

from __future__ import annotations

import sys
import time
from collections import Counter

from prefect import flow

from prefect_mantik import TrainingJob, submit_runs, wait_for_runs

SITES = ("train-alder", "train-birch", "train-cedar")


@flow
def many_runs(number: int) -> None:
    began = time.monotonic()
    jobs = [TrainingJob.load(name) for name in SITES]
    tiny = [job.model_copy(update={"entry_point": "sleep", "parameters": {"seconds": 0.1}}) for job in jobs]
    runs = submit_runs({f"tiny-{index}": tiny[index % len(tiny)] for index in range(number)})
    submitted = time.monotonic()
    print(f"submitted {len(runs)} runs in {submitted - began:.0f} s", flush=True)
    states = Counter(result.status.state.value for result in wait_for_runs(runs))
    print(f"waited {time.monotonic() - submitted:.0f} s more: {dict(states)}", flush=True)
    assert states == {"FINISHED": number}


if __name__ == "__main__":
    many_runs(int(sys.argv[1]))
