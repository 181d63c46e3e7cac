"""A flow run under test: what a person at the UI, the machine and the sites' books do to it and tell of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect_mantik.runs import site_key_prefix
from tests.faults.deployed.books import seconds
from tests.faults.deployed.prefect_api import WrongOutcome, until
from tests.faults.deployed.world import Office, World


@dataclass
class FlowRun:
    """A flow run under test.

    Attributes:
        world: What runs.
        office: Its Prefect server.
        mark: Name of the file in which its processes leave their ids.
        sites: Where it submits to, one run each.
        id: Its id.
        process: Its process, where it was started by hand.
    """

    world: World
    office: Office
    mark: str
    sites: Sequence[str]
    id: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def prefix(self) -> str:
        """What the site keys of its runs begin with."""
        return site_key_prefix(self.office.origin, UUID(self.id))

    def begun(self) -> list[dict[str, Any]]:
        """One entry for each time that the flow began."""
        path = self.world.children.marks / f"{self.mark}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_begun(self, times: int = 1, timeout: float = 90) -> None:
        """Wait until the flow's code runs, for the nth time."""
        until(f"the flow begins, time {times}", lambda: len(self.begun()) >= times, timeout)
        self.id = self.id or self.begun()[0]["flow_run"]

    def jobs(self) -> list[dict[str, Any]]:
        """Its jobs, in the sites' own books."""
        return self.world.books.jobs(self.prefix) if self.id else []

    def wait_jobs(self, *states: str, timeout: float = 90) -> list[dict[str, Any]]:
        """Wait until it has all its jobs, each in one of some states (any, where none is named)."""

        def there() -> list[dict[str, Any]]:
            jobs = self.jobs()
            fits = len(jobs) >= len(self.sites) and all(not states or job["state"] in states for job in jobs)
            return jobs if fits else []

        found: list[dict[str, Any]] = until(f"{len(self.sites)} jobs {' or '.join(states)}", there, timeout)
        return found

    def wait_logged(self, text: str, timeout: float = 60) -> None:
        """Wait until a text is in the log of the flow run."""
        until(f"'{text}' in the log", lambda: any(text in line for line in self.log()), timeout, pause=0.5)

    def wait_waiting(self, timeout: float = 60) -> None:
        """Wait until its process waits for jobs, which it says when it first sees each."""
        self.wait_logged(": RUNNING", timeout)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that began last."""
        os.kill(self.begun()[-1]["pid"], number)

    def kill(self) -> None:
        """SIGKILL the process that began last."""
        self.signal(signal.SIGKILL)

    def crashed(self) -> None:
        """Wait until a Retry is possible after a kill."""
        self.office.api.crashed(self.id)

    def cancel(self) -> float:
        """What the button does; gives the time of the call."""
        return self.office.api.cancel(self.id)

    def retry(self) -> None:
        """What the button does; waits until the flow's code runs again."""
        times = len(self.begun())
        self.office.api.retry(self.id)
        self.wait_begun(times + 1)

    def ended(self, expected: str, timeout: float = 90) -> dict[str, Any]:
        """Wait until it is in a final state (and where it was started by hand, its process has ended); check which."""
        if self.process is not None:
            until("the process ends", lambda: self.process is None or self.process.poll() is not None, timeout)
        return self.office.api.ended(self.id, expected, timeout)

    def log(self) -> list[str]:
        """Its log."""
        return self.office.api.log(self.id) if self.id else []

    def cancel_delays(self, called: float) -> list[float]:
        """Seconds from a cancel to the request that each job's site took.

        Raises:
            WrongOutcome: We asked for no such thing.
        """
        moments = [self.world.books.cancelled_at(job) for job in self.jobs()]
        if len(moments) < len(self.sites) or None in moments:
            raise WrongOutcome(f"{moments.count(None)} of {len(moments)} jobs were never cancelled by a request")
        return [moment - called for moment in moments if moment is not None]

    def site_lags(self) -> list[float]:
        """Seconds from the request that a site took to the end of the job: the site's own time."""
        lags = []
        for job in self.jobs():
            asked = self.world.books.cancelled_at(job)
            if asked is not None and job["ended"]:
                lags.append(seconds(job["ended"]) - asked)
        return lags
