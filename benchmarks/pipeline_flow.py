"""The flow that `pipeline.py` measures, as a process of its own: `python benchmarks/pipeline_flow.py <runs>`."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import httpx
from prefect import flow
from prefect.settings import PREFECT_API_URL

from prefect_mantik import TrainingJob, gather_metrics, submit_runs, wait_for_runs

_requests: Counter[str] = Counter()
_seconds: Counter[str] = Counter()


def watch() -> None:
    """Count the requests of this process, and how long they took."""
    prefect, send = urlsplit(str(PREFECT_API_URL.value())).netloc, httpx.AsyncClient.send

    async def watched(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        path = request.url.path
        whom = "MLflow" if "/tracking/" in path else "site" if "/rest/core" in path else "platform"
        whom = "Prefect" if request.url.netloc.decode() == prefect else whom
        began = time.monotonic()
        try:
            return await send(client, request, **options)
        finally:
            _requests[whom] += 1
            _seconds[whom] += time.monotonic() - began

    httpx.AsyncClient.send = watched  # type: ignore[method-assign, assignment]


@flow
def pipeline(runs: int) -> None:
    """Submit, wait, gather."""
    job = TrainingJob.load("train-birch")
    assert isinstance(job, TrainingJob)
    tiny = job.model_copy(update={"entry_point": "sleep", "parameters": {"seconds": 0.1}})
    times = [time.monotonic()]
    handles = submit_runs({f"tiny-{number}": tiny for number in range(runs)})
    times.append(time.monotonic())
    wait_for_runs(handles)
    times.append(time.monotonic())
    gather_metrics(handles)
    times.append(time.monotonic())
    steps = {name: times[i + 1] - times[i] for i, name in enumerate(("submit", "wait", "gather"))}
    print(json.dumps({**steps, "cpu": time.process_time(), "requests": _requests, "seconds": _seconds}))


if __name__ == "__main__":
    watch()
    pipeline(int(sys.argv[1]))
