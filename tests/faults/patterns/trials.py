"""The faults, each played on one flow run of one pattern at one site."""

from __future__ import annotations

import json
import os
import signal
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect_mantik.runs import site_key_prefix
from tests.faults.deployed.books import overlapping
from tests.faults.deployed.prefect_api import ENDS, PrefectApi, WrongOutcome, until
from tests.faults.deployed.stage import POSTS
from tests.faults.deployed.world import World

ONE_POST_AT_A_TIME = {site: threading.Lock() for site in ("birch", "cedar")}
"""A fault of the route that takes jobs meets the next job, whosesoever it is."""

ENOUGH = 2.0
"""Seconds after the end of a flow run in which a site ends what it was told to end."""


@dataclass
class Try:
    """One flow run of a pattern, and what became of it.

    Attributes:
        world: What runs.
        pattern: Name of the flow.
        site: Where it submits to.
        mark: Name of the file in which its processes leave their ids; part of the names of its jobs.
        id: Of the flow run.
        state: In which it ended.
        left_running: Jobs that were live afterwards.
    """

    world: World
    pattern: str
    site: str
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    id: str = ""
    state: str = ""
    left_running: int = 0

    def start(self, **parameters: Any) -> None:
        given = {"site": self.site, "mark": self.mark, **parameters}
        self.id = self._api.run_deployment(f"{self.pattern}/{self.pattern}", given)

    @property
    def _api(self) -> PrefectApi:
        return self.world.offices["first"].api

    def jobs(self) -> list[dict[str, Any]]:
        ours = site_key_prefix(self.world.offices["first"].origin, UUID(self.id))
        return [*self.world.books.jobs(f"pattern-{self.mark}"), *self.world.books.jobs(ours)]

    def overlapping(self) -> int:
        return overlapping(self.jobs())

    def fault(self, action: str, **rule: Any) -> Callable[[], None]:
        """Add a fault of the POST; gives what waits until it was met."""
        rule = {"seconds": 60 + int(self.mark[:6], 16) / 2**24, **rule}
        control = self.world.sandbox.control
        control.add_fault(action, method="POST", route=POSTS[self.site], **rule)

        def is_met() -> bool:
            rules = control.call("GET", "/faults")
            return any(each["used"] and each["seconds"] == rule["seconds"] for each in rules)

        return lambda: until(f"the POST of {self.pattern} at {self.site}", is_met, 90)

    def running(self) -> None:
        until("the job runs", lambda: any(job["state"] == "RUNNING" for job in self.jobs()), 90)

    def submitted_again(self) -> None:
        """Wait until the next try has submitted, or found what is there: it must not meet the fault of another."""

        def is_done() -> bool:
            if self.pattern == "ours":
                return any("Submitted" in line or "Found" in line for line in self._api.log(self.id))
            return len(self.jobs()) > 1 or self._api.state(self.id)["type"] in ENDS

        until(f"{self.pattern} submits again at {self.site}", is_done, 60)

    def kill(self) -> None:
        lines = (self.world.children.marks / f"{self.mark}.jsonl").read_text().splitlines()
        os.kill(json.loads(lines[-1])["pid"], signal.SIGKILL)
        self._api.crashed(self.id)

    def retry(self) -> None:
        self._api.retry(self.id)

    def cancel(self) -> None:
        self._api.cancel(self.id)

    def finish(self) -> None:
        """Wait for the end of the flow run, and look what is left."""

        def end() -> str:
            state = self._api.state(self.id)["type"]
            return state if state in ENDS else ""

        self.state = until(f"{self.pattern} at {self.site} ends", end, 150, pause=0.5)
        try:
            until("no job is live", lambda: not self._live(), ENOUGH)
        except WrongOutcome:
            self.left_running = len(self._live())
        for job in self._live():
            self.world.sandbox.control.end_job(job["id"])

    def _live(self) -> list[dict[str, Any]]:
        return [job for job in self.jobs() if job["live"]]


def _at_the_post(action: str, **rule: Any) -> Callable[[Try], None]:
    def play(each: Try) -> None:
        with ONE_POST_AT_A_TIME[each.site]:
            met = each.fault(action, **rule)
            each.start(seconds=SHORT)
            met()
            each.submitted_again()

    return play


def killed_at_submit(each: Try) -> None:
    with ONE_POST_AT_A_TIME[each.site]:
        met = each.fault("delay_after")
        each.start(seconds=LONG)
        met()
        until("the job is there", each.jobs, 30)
        each.kill()
        each.retry()
        each.submitted_again()


def killed_while_waiting(each: Try) -> None:
    each.start(seconds=LONG)
    each.running()
    # The POST was answered, and what the pattern does with it was done: it asks for the job's state.
    path = f"/jobs/{each.jobs()[0]['id']}", f"/jobs/{each.jobs()[0]['number']}"
    log = each.world.sandbox.control.request_log
    if each.pattern != "ours":
        until(
            "a poll",
            lambda: any(seen["method"] == "GET" and seen["path"].endswith(path) for seen in log()),
            60,
        )
    else:
        until("a poll", lambda: any(": RUNNING" in line for line in each._api.log(each.id)), 60)
    each.kill()
    each.retry()


def flow_retries(each: Try) -> None:
    each.start(seconds=SHORT, fail=True)
    each.running()


def cancelled(each: Try) -> None:
    each.start(seconds=600)
    each.running()
    each.cancel()


SHORT, LONG = 4, 30
"""Seconds of a job: one that ends at once, and one that is live when the flow run begins again."""

AT_THE_POST: dict[str, Callable[[Try], None]] = {
    "answer lost, task retry": _at_the_post("drop_after"),
    "5xx after accept, task retry": _at_the_post("status_after", status=502),
    "SIGKILL before the record, Retry": killed_at_submit,
}
"""Done first, and at each site one after another."""

AFTERWARDS: dict[str, Callable[[Try], None]] = {
    "SIGKILL while waiting, Retry": killed_while_waiting,
    "flow.retries": flow_retries,
    "Cancel": cancelled,
}

FAULTS = {**AT_THE_POST, **AFTERWARDS}
