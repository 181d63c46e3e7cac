"""Two real processes wait on one account of a site, at a real Prefect server: one of them asks, until it is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_mantik.sandbox.process import SandboxProcess
from tests.conftest import PrefectServer

ROOT = Path(__file__).parents[2]

KINDS = {"train-birch": "/rest/core/jobs", "train-cedar": "/compute/"}
"""Jobs, and what the routes hold by which they are asked."""


class Sharer:
    """One process, and what it printed."""

    def __init__(self, server: PrefectServer, output: Path, name: str) -> None:
        pace = {f"PREFECT_INTEGRATIONS_MANTIK_POLL_{which}": "1" for which in ("SHORTEST", "LONGEST", "QUEUED")}
        self._path = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.flows.sharers", name],
                env=server.environment(**pace),
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def printed(self, word: str) -> list[str]:
        lines = self._path.read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{word} ")]

    def until(self, done: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, self._path.read_text()
            time.sleep(0.1)


@pytest.mark.timeout(180)
def test_one_asks_for_both_until_it_is_killed(
    sandbox: SandboxProcess, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    """By UNICORE each run is a call, by FirecREST one list is for all: both at the same time."""
    pairs: dict[str, tuple[Sharer, Sharer]] = {}
    started: list[Sharer] = []

    def start(kind: str, which: str) -> Sharer:
        started.append(Sharer(prefect_server, tmp_path / f"{kind}-{which}", kind))
        return started[-1]

    try:
        first = {kind: start(kind, "first") for kind in KINDS}
        for sharer in first.values():
            sharer.until(lambda sharer=sharer: bool(sharer.printed("ASKED")))
        pairs = {kind: (sharer, start(kind, "second")) for kind, sharer in first.items()}
        for holder, follower in pairs.values():
            _until_it_follows(holder, follower)
        for kind in KINDS:
            _second_costs_nothing(sandbox, kind, *pairs[kind])
        for holder, _ in pairs.values():
            holder.process.kill()
        for _, follower in pairs.values():
            before = len(follower.printed("ASKED"))
            follower.until(lambda f=follower, before=before: len(f.printed("ASKED")) > before, 5 * 1.15 + 5)
            _end(sandbox, follower.printed("JOB")[0])
        for _, follower in pairs.values():
            follower.until(lambda f=follower: bool(f.printed("RESULT")))
            assert follower.printed("RESULT") == ["KILLED"]
    finally:
        for sharer in started:
            sharer.process.kill()
            sharer.process.wait()


def _until_it_follows(holder: Sharer, follower: Sharer) -> None:
    follower.until(lambda: bool(follower.printed("JOB")))
    job = follower.printed("JOB")[0]
    follower.until(lambda: any(job in asked.split() for asked in holder.printed("ASKED")))
    time.sleep(2)


def _second_costs_nothing(sandbox: SandboxProcess, kind: str, holder: Sharer, follower: Sharer) -> None:
    asked, asked_by_holder = len(follower.printed("ASKED")), len(holder.printed("ASKED"))
    sandbox.control.reset_requests()
    time.sleep(4)
    requests = [entry for entry in sandbox.control.requests() if entry["method"] == "GET"]
    requests = [entry for entry in requests if "jobs" in entry["route"] and KINDS[kind] in entry["route"]]
    lines = holder.printed("ASKED")[asked_by_holder:]
    assert len(follower.printed("ASKED")) == asked
    assert 2 <= sum(entry["count"] for entry in requests) <= sum(len(line.split()) for line in lines) + 2


def _end(sandbox: SandboxProcess, remote_id: str) -> None:
    live = sandbox.control.jobs(live=True)
    job = next(job for job in live if remote_id in (str(job["id"]), str(job["number"])))
    sandbox.control.end_job(job["id"])
