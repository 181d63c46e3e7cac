"""What one look at many runs costs a site: FirecREST and the platform, and the first look after a restart at UNICORE.

All at the sandbox, where no job gets its turn; every request is counted there.

    python benchmarks/wait_rounds.py [most jobs] [firecrest|platform|reattach ...]
"""

from __future__ import annotations

import asyncio
import logging
import math
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
from firecrest import ClientCredentialsAuth
from firecrest.v2 import AsyncFirecrest
from mlflow import MlflowClient
from pyunicore.client import Job, Transport
from pyunicore.credentials import UsernamePassword

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import Row, report
from benchmarks.unicore_poll import WAITING_JOB, client_of, watched
from prefect_mantik.loop import call
from prefect_mantik.runs import RunHandle, RunState
from prefect_mantik.sandbox.process import SandboxProcess, start_sandbox
from prefect_mantik.waiting.waits import wait_until_ended
from tests.contract.conftest import FirecrestRoad, PlatformRoad, UnicoreRoad, sandbox_firecrest, sandbox_unicore
from tests.sandbox_jobs import credentials, new_key

ROUNDS, MOST, MISSING = 5, 1000, 5
SCRIPT = "#!/bin/bash\n#SBATCH --job-name={name}\n#SBATCH --partition=batch\n#SBATCH --time=5\ntrue\n"


def count(sandbox: SandboxProcess) -> Counter[str]:
    """The requests since the last time, but for the control of the sandbox and logins."""
    found: Counter[str] = Counter()
    for item in sandbox.control.requests():
        if not item["route"].startswith("/_sandbox") and "token" not in item["route"]:
            found[f"{item['method']} {item['route']}"] += item["count"]
    sandbox.control.reset_requests()
    return found


# --- FirecREST -------------------------------------------------------------------------------------------------------


async def _firecrest_jobs(road: FirecrestRoad, client: AsyncFirecrest, number: int) -> list[str]:
    turn = asyncio.Semaphore(8)
    site, key = road.site(), new_key("many")

    async def one(index: int) -> str:
        async with turn:
            name = f"{key.site_key[:-4]}{index:04d}-1"
            answer = await client.submit(site.system, site.root, script_str=SCRIPT.format(name=name))
            return f"{name} {answer['jobId']}"

    return await asyncio.gather(*(one(index) for index in range(number)))


def _handle(kind: str, site: str, id: str, name: str) -> RunHandle:
    key, _, attempt = name.rpartition("-")
    return RunHandle.model_validate(
        {"site": None, "site_name": site, "kind": kind, "remote_id": id, "site_key": key, "name": id}
        | {"attempt": int(attempt)}
    )


async def _wait_for_jobs_once(client: AsyncFirecrest, system: str, ids: Sequence[str]) -> None:
    """The question that pyfirecrest's `wait_for_job` asks again and again, once for each job."""
    turn = asyncio.Semaphore(8)

    async def one(id: str) -> None:
        async with turn:
            await client.job_info(system, id)

    await asyncio.gather(*map(one, ids))


def firecrest(sandbox: SandboxProcess, most: int) -> list[Row]:
    """Requests for one look at 1, 10, 100 and 1,000 jobs, and at some that are missing from the list."""
    sandbox.control.change_site("cedar", queue_reason="the benchmark lets no job start")
    road, env = sandbox_firecrest(sandbox), sandbox.env
    auth = ClientCredentialsAuth(
        env["MANTIK_FIRECREST_CLIENT_ID"], env["MANTIK_FIRECREST_CLIENT_SECRET"], road.site().token_url
    )
    client, site, rows = AsyncFirecrest(road.site().api_url, auth), road.open(), []
    made = [line.split() for line in asyncio.run(_firecrest_jobs(road, client, most))]
    handles = [_handle("firecrest", site.name, id, name) for name, id in made]
    call(site.poll, handles[:1])
    for number in [number for number in (1, 10, 100, 1000) if number <= most]:
        mine, peer = [], []
        for _ in range(ROUNDS):
            count(sandbox)
            statuses = call(site.poll, handles[:number])
            assert {status.state for status in statuses.values()} == {RunState.SCHEDULED}
            mine.append(sum(count(sandbox).values()))
            theirs = AsyncFirecrest(road.site().api_url, auth)
            asyncio.run(_wait_for_jobs_once(theirs, "cedar", [handle.remote_id for handle in handles[:number]]))
            peer.append(sum(count(sandbox).values()))
        ours, other = statistics.median(mine), statistics.median(peer)
        note = f"at the sandbox; peer: pyfirecrest, what wait_for_job asks for each job; median of {ROUNDS}, in turn"
        rows.append(
            Row(f"FirecREST requests a round, {number:,} jobs", ours, other, ours / other, "1", ours == 1, "", note)
        )
    rows.append(_missing(sandbox, road, handles))
    return rows


def _missing(sandbox: SandboxProcess, road: FirecrestRoad, handles: Sequence[RunHandle]) -> Row:
    """Jobs that ended before they could start are in no list."""
    for handle in handles[-MISSING:]:
        sandbox.control.end_job(sandbox.control.job_of(handle.remote_id))
    count(sandbox)
    call(road.open().poll, handles)
    asked = sum(count(sandbox).values())
    return Row(
        f"FirecREST requests a round, {MISSING} of {len(handles):,} jobs missing from the list",
        asked,
        None,
        None,
        f"<= 1 + {MISSING}",
        asked <= 1 + MISSING,
        "",
        "at the sandbox: jobs that were cancelled before they could start; one round",
    )


# --- The platform ----------------------------------------------------------------------------------------------------


def platform(sandbox: SandboxProcess, most: int) -> list[Row]:
    """Requests for one look at many runs of one tracking account, and logins over several lives of a token."""
    road, env = PlatformRoad(sandbox, frozenset()), sandbox.env
    account = credentials(sandbox)
    token = call(account.tracking_client().tokens.token)
    mlflow.set_tracking_uri(env["MLFLOW_TRACKING_URI"])
    client = MlflowClient(env["MLFLOW_TRACKING_URI"])
    with _Token(token):
        experiment = client.create_experiment(f"rounds-{time.time_ns()}")
        with ThreadPoolExecutor(8) as pool:
            ids = list(pool.map(lambda _: client.create_run(experiment).info.run_id, range(most)))
    handles = [
        _handle("mantik", "alder", id, f"pm-{id}-1").model_copy(update={"mlflow_experiment_id": experiment})
        for id in ids
    ]
    site, mine, peer = road.open(), [], []
    call(site.poll, handles[:1])
    for _ in range(ROUNDS):
        count(sandbox)
        statuses = call(site.poll, handles)
        assert RunState.UNKNOWN not in {status.state for status in statuses.values()}
        mine.append(sum(count(sandbox).values()))
        with _Token(token):
            for id in ids:
                client.get_run(id)
        peer.append(sum(count(sandbox).values()))
    ours, other = statistics.median(mine), statistics.median(peer)
    note = f"at the sandbox's MLflow server; peer: MlflowClient.get_run for each; median of {ROUNDS}, in turn"
    name = f"platform: requests a round and tracking account, {most:,} runs"
    return [Row(name, ours, other, ours / other, "1", ours == 1, "", note), _logins(sandbox)]


class _Token:
    """MLflow's client takes its token from the environment only."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __enter__(self) -> None:
        import os

        os.environ["MLFLOW_TRACKING_TOKEN"] = self._token

    def __exit__(self, *_: object) -> None:
        import os

        del os.environ["MLFLOW_TRACKING_TOKEN"]


def _logins(sandbox: SandboxProcess) -> Row:
    """Polls for several lives of a token, all at once, as a hundred waits of one process do."""
    life, lives = 25.0, 2
    sandbox.control.switch(token_lifetime=life)
    try:
        account = credentials(sandbox, password=sandbox.control.change_password(sandbox.env["MANTIK_USERNAME"]))
        tracking = account.tracking_client()
        sandbox.control.reset_requests()
        began = time.monotonic()
        while time.monotonic() - began < life * lives:
            call(_many_tokens, tracking)
            time.sleep(0.1)
        asked = sum(item["count"] for item in sandbox.control.requests() if "token" in item["route"])
    finally:
        sandbox.control.switch(token_lifetime=3600.0)
    # A token is replaced a little before its end: what counts as its life is what it is used for.
    used = life - (life / 5 + 2)
    allowed = math.ceil(life * lives / used)
    return Row(
        f"token requests over {lives} lives of a token",
        asked,
        None,
        None,
        "<= 1 a life",
        asked <= allowed,
        "",
        f"at the sandbox, tokens of {life:.0f} s, 100 askers at once; each is replaced {life - used:.0f} s before its "
        f"end, so that {allowed} are used; one run of {life * lives:.0f} s",
    )


async def _many_tokens(tracking: object) -> None:
    tokens = tracking.tokens  # type: ignore[attr-defined]
    await asyncio.gather(*(tokens.token() for _ in range(100)))


# --- After a restart -------------------------------------------------------------------------------------------------


async def _all_known(site: object, handles: Sequence[RunHandle]) -> float:
    """Seconds until a wait that begins knows the state of each run."""
    began, known = time.monotonic(), asyncio.Event()

    class Observer:
        async def look(self, runs: dict[RunHandle, tuple[object, object]]) -> None:
            if all(one[1] is not None for one in runs.values()):
                known.set()

        async def close(self, runs: object) -> None:
            pass

    async def reopen(_: RunHandle) -> object:
        return site

    wait = asyncio.ensure_future(
        wait_until_ended(dict.fromkeys(handles, site), reopen=reopen, observers=[Observer()])  # type: ignore[arg-type, list-item]
    )
    await asyncio.wait_for(known.wait(), 300)
    seconds = time.monotonic() - began
    wait.cancel()
    await asyncio.wait([wait])
    return seconds


def reattach(sandbox: SandboxProcess, most: int) -> list[Row]:
    """A new wait for many UNICORE jobs, each of which is a call; beside pyunicore's status in threads."""
    road = sandbox_unicore(sandbox)
    client = client_of(road)

    async def submitted() -> list[str]:
        return await asyncio.gather(*(client.submit(WAITING_JOB) for _ in range(most)))

    jobs = call(submitted)
    handles = [_handle("unicore", "alder", job, f"pm-{job}-1") for job in jobs]
    mine, most_at_once, peer = [], 0, []
    for _ in range(ROUNDS):
        with watched(road.url) as seen:
            mine.append(call(_all_known, road.open(), handles))
        most_at_once = max(most_at_once, seen.most)
        peer.append(_by_threads(road, jobs))
    ours, theirs = statistics.median(mine), statistics.median(peer)
    note = (
        f"at the sandbox, jobs that wait; {most_at_once} requests in flight at most; peer: Job.status of pyunicore in "
        f"4 threads; median of {ROUNDS}, in turn"
    )
    met = ours <= 120 and most_at_once <= 4
    name = f"all states of {most:,} UNICORE runs known again after a restart"
    return [Row(name, ours, theirs, ours / theirs, "<= 120 s, <= 4 in flight", met, "s", note)]


def _by_threads(road: UnicoreRoad, jobs: Sequence[str]) -> float:
    local, began = threading.local(), time.monotonic()

    def status(job: str) -> object:
        if not hasattr(local, "login"):
            local.login = Transport(UsernamePassword(road.username, road.password), verify=False)
        return Job(local.login, f"{road.url}/jobs/{job}", cache_time=0).status

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(status, jobs))
    return time.monotonic() - began


def main() -> int:
    """Measure and report."""
    logging.disable(logging.CRITICAL)
    most = int(sys.argv[1]) if len(sys.argv) > 1 else MOST
    parts = {"firecrest": firecrest, "platform": platform, "reattach": reattach}
    for part in [parts[name] for name in sys.argv[2:]] or parts.values():
        with start_sandbox() as sandbox:
            report(*part(sandbox, most))
    return 0


if __name__ == "__main__":
    sys.exit(main())
