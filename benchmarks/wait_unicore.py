"""One training of an hour at a UNICORE site: how many requests it takes until its metrics are here, beside pyunicore.

The sandbox runs the job and counts the requests; the hour is virtual: waits do not sleep, and what happened to the job
is moved into the past instead. The job ends when the hour is over.

    python benchmarks/wait_unicore.py [rounds]
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
import sys
import tempfile
import time as wall
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from pyunicore import client as pyunicore_client
from pyunicore.client import Client, Job, Transport
from pyunicore.credentials import UsernamePassword

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import Row, report
from benchmarks.virtual import VirtualTime, never
from prefect_mantik.loop import call
from prefect_mantik.runs import RunState
from prefect_mantik.sandbox.process import SandboxProcess, start_sandbox
from prefect_mantik.tracking import final_metrics
from prefect_mantik.waiting.waits import wait_until_ended
from tests.contract.conftest import UnicoreRoad, sandbox_unicore
from tests.sandbox_jobs import MemoryLedger, new_key, project

ROUNDS, HOUR = 5, 3600.0
MLPROJECT = "name: hour\nentry_points:\n  main:\n    command: '{command}'\n"


class Cost(NamedTuple):
    """Requests of one training, and seconds from its end until that was seen."""

    requests: int
    late: float


class Hour:
    """The job of one round: it runs until an hour of virtual time is over."""

    def __init__(self, sandbox: SandboxProcess, directory: Path) -> None:
        self._sandbox, self.now, self.ended = sandbox, 0.0, False
        self.door = directory / "the-hour-is-over"
        self.command = f"while [ ! -e {self.door} ]; do sleep 0.05; done"

    def passes(self, seconds: float) -> None:
        """Move the job's past along, and end it when its hour is over."""
        jobs = self._sandbox.control.jobs(live=True)
        self.now += seconds
        if self.now < HOUR:
            for job in jobs:
                if job["state"] == "RUNNING":
                    self._sandbox.control.age_job(job["id"], seconds)
        elif not self.ended:
            self.ended = True
            self.door.touch()
            while self._sandbox.control.jobs(live=True):
                wall.sleep(0.05)
            wall.sleep(0.5)  # UNICORE learns of it a little later


def until_running(sandbox: SandboxProcess) -> None:
    """Wait until the job's hour begins."""
    while not any(job["state"] == "RUNNING" for job in sandbox.control.jobs(live=True)):
        wall.sleep(0.05)


def requests(sandbox: SandboxProcess) -> Counter[str]:
    """What was asked, but for the control of the sandbox."""
    found: Counter[str] = Counter()
    for item in sandbox.control.requests():
        if not item["route"].startswith("/_sandbox"):
            found[f"{item['method']} {item['route']}"] += item["count"]
    return found


async def ours(road: UnicoreRoad, hour: Hour, code: Path) -> None:
    """Submit, wait, gather."""

    async def passes(seconds: float) -> None:
        await asyncio.to_thread(hour.passes, seconds)

    (code / "MLproject").write_text(MLPROJECT.format(command=hour.command))
    # What the site's block says of polls in tests is left out: the settings of the package count.
    job = road.job(directory=str(code), site=road.site(poll_shortest=0))
    site = job.site.open(job.project)
    handle = await site.submit(job.spec(), new_key("hour"), ledger=MemoryLedger())
    await asyncio.to_thread(until_running, road.sandbox)
    with VirtualTime(passes).installed():
        statuses = await wait_until_ended({handle: site}, reopen=never)
    assert statuses[handle].state is RunState.FINISHED, statuses
    await final_metrics(project(road.sandbox).credentials.tracking_client(), [handle])


def theirs(road: UnicoreRoad, hour: Hour) -> None:
    """Submit by pyunicore, and poll."""
    client = Client(Transport(UsernamePassword(road.username, road.password), verify=False), road.url)
    job = client.new_job(
        {"Executable": "bash", "Arguments": ["hour.sh"], "Imports": [{"To": "hour.sh", "Data": hour.command}]}
    )
    until_running(road.sandbox)

    with patch.object(pyunicore_client, "time", VirtualModule(hour, job)):
        job.poll()


class VirtualModule:
    """The module `time` for pyunicore."""

    def __init__(self, hour: Hour, job: Job) -> None:
        self._hour, self._job, self.time = hour, job, wall.time

    def sleep(self, seconds: float) -> None:
        """Let virtual seconds pass, for what the job remembers too."""
        self._hour.passes(seconds)
        self._job._last_retrieved -= timedelta(seconds=seconds)


def measured(sandbox: SandboxProcess, whose: str) -> tuple[Cost, Counter[str]]:
    """One round."""
    road = sandbox_unicore(sandbox)
    with tempfile.TemporaryDirectory(prefix="hour-") as directory:
        hour = Hour(sandbox, Path(directory))
        code = Path(directory) / "code"
        code.mkdir()
        sandbox.control.reset_requests()
        if whose == "ours":
            call(ours, road, hour, code)
        else:
            theirs(road, hour)
    found = requests(sandbox)
    return Cost(sum(found.values()), hour.now - HOUR), found


def main() -> int:
    """Measure and report."""
    logging.disable(logging.CRITICAL)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    costs: dict[str, list[Cost]] = {"ours": [], "theirs": []}
    kinds: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(start_sandbox(queue_delay=0.1, unicore_status_lag=0.05))
        for number in range(rounds):
            for whose in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
                cost, found = measured(sandbox, whose)
                costs[whose].append(cost)
                kinds = found if whose == "ours" else kinds
    polls = kinds["GET /{site}/rest/core/jobs/{jobId}"]
    tracking = sum(count for what, count in kinds.items() if "/tracking" in what)
    others = sum(kinds.values()) - polls - tracking
    mine = statistics.median(cost.requests for cost in costs["ours"])
    peer = statistics.median(cost.requests for cost in costs["theirs"])
    late = max(cost.late for cost in costs["ours"])
    how = f"virtual hour at the sandbox, which counts; median of {rounds}, in turn"
    report(
        Row(
            "requests for one UNICORE training of 1 h",
            mine,
            peer,
            mine / peer,
            "<= 100, and <= 1/6 of pyunicore",
            mine <= 100 and mine / peer <= 1 / 6,
            "",
            f"ours in the last round: {polls} polls, {tracking} of MLflow, {others} of login, code, token and submit; "
            f"peer: Job.poll of pyunicore, submit and polls; {how}",
        ),
        Row(
            "the end of that training is seen later by",
            late,
            max(cost.late for cost in costs["theirs"]),
            None,
            "<= 60 s + jitter of 10 %",
            late <= 66,
            "s",
            f"largest of {rounds}; peer: pyunicore; {how}",
        ),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
