"""Two hundred submissions to a FirecREST site at once: none lost, none doubled; and what it costs beside a bare loop.

All in one run against the sandbox, whose look-alike of FirecREST lets a user have four sessions, as a careful site may.
No job gets its turn, so that only submitting is measured. It only reports: where a target is missed it says MISSED.

    python benchmarks/firecrest_submits.py [submissions]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from firecrest import ClientCredentialsAuth
from firecrest.v2 import AsyncFirecrest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import Row, report
from prefect_mantik.loop import call
from prefect_mantik.runs import RunHandle, RunKey
from prefect_mantik.sandbox.process import SandboxProcess, start_sandbox
from tests.contract.conftest import FirecrestRoad, sandbox_firecrest
from tests.sandbox_jobs import MemoryLedger, new_key

SUBMISSIONS = 200
IN_FLIGHT = 4
REQUESTS_FOR_A_SUBMIT = 3
ROUNDS = 20

BARE = "peer: pyfirecrest's submit in a loop, which only posts"
JOBS = "/firecrest/v2/compute/{system}/jobs"
SCRIPT = "#!/bin/bash\n#SBATCH --job-name=bare\n#SBATCH --partition=batch\n#SBATCH --time=5\ntrue\n"


def main(submissions: int = SUBMISSIONS) -> None:
    """Measure, and report."""
    with start_sandbox(slots=4, firecrest_max_sessions=IN_FLIGHT) as sandbox:
        sandbox.control.change_site("cedar", queue_reason="the benchmark lets no job start")
        road = sandbox_firecrest(sandbox)
        call(road.open().check)  # logs in, imports, fills the caches
        bare, refused = call(_bare, road, submissions)
        _forget(sandbox)
        keys = [new_key(f"run-{number}") for number in range(submissions)]
        seconds, handles = call(_ours, road, keys)
        counts = _counts(sandbox)
        found = {key.site_key: road.jobs(key) for key in keys}
        rounds = call(_rounds, road, handles)
        polls = _counts(sandbox)
        _report(submissions, bare, refused, seconds, counts, found, rounds, polls - counts)
        _forget(sandbox)


async def _bare(road: FirecrestRoad, submissions: int) -> tuple[float, int]:
    """What a script would do: submit, four at a time, with nothing looked for and nothing sent along."""
    env, site = road.sandbox.env, road.site()
    login = ClientCredentialsAuth(
        env["MANTIK_FIRECREST_CLIENT_ID"], env["MANTIK_FIRECREST_CLIENT_SECRET"], site.token_url
    )
    client = AsyncFirecrest(site.api_url, login)
    turn, refused = asyncio.Semaphore(IN_FLIGHT), 0

    async def one() -> None:
        nonlocal refused
        async with turn:
            try:
                await client.submit(site.system, site.root, script_str=SCRIPT)
            except Exception:  # noqa: BLE001  # pyfirecrest's errors have no common root; what counts is the number
                refused += 1

    seconds = await _timed(lambda: asyncio.gather(*(one() for _ in range(submissions))))
    await client.close_session()
    return seconds, refused


async def _ours(road: FirecrestRoad, keys: list[RunKey]) -> tuple[float, list[RunHandle]]:
    handles: list[RunHandle] = []
    job = road.job(entry_point="fail")
    site, spec = job.site.open(job.project), job.spec()

    async def one(key: RunKey) -> None:
        handles.append(await site.submit(spec, key, ledger=MemoryLedger()))

    return await _timed(lambda: asyncio.gather(*map(one, keys))), handles


async def _rounds(road: FirecrestRoad, handles: list[RunHandle]) -> list[float]:
    site = road.open()
    return [await _timed(lambda: site.poll(handles)) for _ in range(ROUNDS)]


async def _timed(step: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await step()
    return time.perf_counter() - began


def _forget(sandbox: SandboxProcess) -> None:
    for job in sandbox.control.jobs(live=True):
        sandbox.control.end_job(job["id"])
    sandbox.control.reset_requests()


def _counts(sandbox: SandboxProcess) -> Counter[tuple[str, int]]:
    found = sandbox.control.requests()
    counts: Counter[tuple[str, int]] = Counter()
    for item in found:
        if item["route"].startswith("/firecrest"):
            counts[f"{item['method']} {item['route'].removeprefix('/firecrest/v2')}", item["status"]] += item["count"]
    return counts


def _report(
    submissions: int,
    bare: float,
    refused: int,
    seconds: float,
    counts: Counter[tuple[str, int]],
    found: dict[str, list[dict[str, object]]],
    rounds: list[float],
    polls: Counter[tuple[str, int]],
) -> None:
    lost = [key for key, jobs in found.items() if not jobs]
    doubled = [key for key, jobs in found.items() if len(jobs) > 1]
    about_jobs = sum(number for (what, _), number in counts.items() if "/compute/" in what) / submissions
    staging = sum(counts.values()) / submissions - about_jobs
    errors = sum(number for (_, status), number in counts.items() if status in (424, 500, 502, 503))
    asked = sum(polls.values()) / len(rounds)
    how = f"{submissions} submits at once at the sandbox, {IN_FLIGHT} sessions, one run"
    name = "FirecREST submits"
    target = f"<= {REQUESTS_FOR_A_SUBMIT}"
    took = f"a look takes {statistics.median(rounds) * 1000:.0f} ms; median of {len(rounds)}"
    report(
        Row(f"{name}: lost or doubled", len(lost) + len(doubled), None, None, "0", not lost and not doubled, "", how),
        Row(f"{name}: refused for too many sessions", errors, refused, None, "0", errors == 0, "", f"{how}; {BARE}"),
        Row(
            f"{name}: requests about jobs for each",
            about_jobs,
            1,
            None,
            target,
            about_jobs <= REQUESTS_FOR_A_SUBMIT,
            "",
            f"{how}; {staging:.1f} more of staging; {BARE}",
        ),
        Row(f"{name}: wall time", seconds, bare, seconds / bare, "", None, "s", f"{how}; {BARE}"),
        Row(f"{name}: requests for a look at all of them", asked, None, None, "1", asked == 1, "", took),
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
