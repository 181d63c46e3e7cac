"""CPU of a waiting run-hour: our waits beside one thread for each job that calls pyunicore's `Job.poll`.

Both ask the sandbox, really; time is virtual: ours for an hour, the peer's for some minutes of it, times what is left.

    python benchmarks/wait_cpu.py [jobs] [rounds]
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
import sys
import threading
import time as wall
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

from pyunicore import client as pyunicore_client
from pyunicore.client import Job, Transport
from pyunicore.credentials import UsernamePassword

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import Row, report
from benchmarks.unicore_poll import WAITING_JOB, client_of
from benchmarks.virtual import VirtualTime, never
from prefect_mantik.loop import call
from prefect_mantik.runs import RunHandle
from prefect_mantik.sandbox.process import SandboxProcess, start_sandbox
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting.waits import wait_until_ended
from tests.contract.conftest import UnicoreRoad, sandbox_unicore

JOBS, ROUNDS, HOUR, PEER_SECONDS = 20, 5, 3600.0, 120.0


class Enough(BaseException):
    """The peer's minutes are over."""


async def an_hour(site: Site, handles: Sequence[RunHandle]) -> float:
    """CPU seconds of a wait over a virtual hour; the jobs do not end."""

    time, began = VirtualTime(), wall.process_time()
    with time.installed():
        wait = asyncio.ensure_future(wait_until_ended(dict.fromkeys(handles, site), reopen=never))
        while time.now < HOUR and not wait.done():
            await time.sleep(60.0)
        wait.cancel()
        await asyncio.wait([wait])
    return wall.process_time() - began


class VirtualModule:
    """The module `time` for pyunicore's jobs, of which each is polled by a thread of its own."""

    def __init__(self) -> None:
        self.time = wall.time
        self.polled = threading.local()

    def sleep(self, seconds: float) -> None:
        """Let virtual seconds pass for the job of this thread, and for what it remembers."""
        polled = self.polled
        polled.job._last_retrieved -= timedelta(seconds=seconds)
        polled.now += seconds
        if polled.now >= PEER_SECONDS:
            raise Enough


def by_threads(road: UnicoreRoad, jobs: Sequence[str]) -> float:
    """CPU seconds of `Job.poll` in a thread for each job, as if for an hour."""

    def poll(job: str) -> None:
        login = Transport(UsernamePassword(road.username, road.password), verify=road.ca_file or False)
        time.polled.job, time.polled.now = Job(login, f"{road.url}/jobs/{job}"), 0.0
        with contextlib.suppress(Enough):
            time.polled.job.poll()

    time = VirtualModule()
    threads = [threading.Thread(target=poll, args=(job,)) for job in jobs]
    began = wall.process_time()
    with patch.object(pyunicore_client, "time", time):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return (wall.process_time() - began) * HOUR / PEER_SECONDS


def over_tls(sandbox: SandboxProcess) -> UnicoreRoad:
    """The sandbox's site alder as sites are reached: over TLS, with a certificate that is verified."""
    env = sandbox.env
    road = sandbox_unicore(sandbox)
    return replace(road, url=f"{env['MANTIK_SANDBOX_TLS_URL']}/ALDER/rest/core", ca_file=env["MANTIK_SANDBOX_CA_FILE"])


def main() -> int:
    """Measure and report."""
    logging.disable(logging.CRITICAL)
    number = int(sys.argv[1]) if len(sys.argv) > 1 else JOBS
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS
    with start_sandbox(tls=True) as sandbox:
        report(
            row("over TLS", over_tls(sandbox), number, rounds),
            row("over plain http", sandbox_unicore(sandbox), number, rounds),
        )
    return 0


def row(how: str, road: UnicoreRoad, number: int, rounds: int) -> Row:
    """Ours and the peer in turn. How sites are really reached is over TLS."""
    mine, theirs = [], []
    client, site = client_of(road), road.open(site=road.site(poll_shortest=0))
    jobs = [call(client.submit, WAITING_JOB) for _ in range(number)]
    handles = [
        RunHandle(site=None, site_name=site.name, kind="unicore", remote_id=job, site_key=f"pm-{job}", name=job)
        for job in jobs
    ]
    for _ in range(rounds):
        mine.append(call(an_hour, site, handles) / number)
        theirs.append(by_threads(road, jobs) / number)
    ours, peer = statistics.median(mine), statistics.median(theirs)
    note = (
        f"{number} UNICORE runs at the sandbox, virtual hour; peer: Job.poll of pyunicore in a thread each, "
        f"{PEER_SECONDS:.0f} virtual s, times {HOUR / PEER_SECONDS:.0f}; median of {rounds}, in turn"
    )
    ratio = ours / peer
    return Row(f"CPU of a waiting run-hour, {how}", ours, peer, ratio, "<= 1/10", ratio <= 0.1, "s", note)


if __name__ == "__main__":
    sys.exit(main())
