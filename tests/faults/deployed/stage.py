"""One trial: its flow runs, what it may do to them, and what it came to."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.faults.deployed.books import overlapping
from tests.faults.deployed.flow_run import FlowRun
from tests.faults.deployed.prefect_api import WrongOutcome, until
from tests.faults.deployed.processes import kill
from tests.faults.deployed.setup_server import DOOMED
from tests.faults.deployed.world import World
from tests.faults.report import Cell

KINDS = {
    "alder": "platform, site asked",
    "cedar-behind": "platform, site asked",
    "birch": "UNICORE",
    "birch-late": "UNICORE",
    "alder-direct": "UNICORE",
    "cedar": "FirecREST",
    "cedar-late": "FirecREST",
    "cedar-rest": "FirecREST, REST mode",
}
"""The kind of each site, as rows have it."""

POSTS = {
    "alder": "/projects/{projectId}/runs",
    "cedar-behind": "/projects/{projectId}/runs",
    "birch": "/BIRCH/rest/core/jobs",
    "birch-late": "/BIRCH/rest/core/jobs",
    "alder-direct": "/ALDER/rest/core/jobs",
    "cedar": "/firecrest/v2/compute/cedar/jobs",
    "cedar-late": "/firecrest/v2/compute/cedar/jobs",
    "cedar-rest": "/firecrest/v2/compute/cedar-rest/jobs",
}
"""The route that takes jobs, by site. A fault there meets the next job: lanes that run together share none."""

SERVED = "served"
"""Name of the deployment of `held` that is served."""

PATIENCE = 8.0
"""Seconds that a site may take to end a job that it was told to end, and that closing its MLflow run takes."""


@dataclass
class Stage:
    """What a trial has at hand.

    Attributes:
        world: What runs.
        site: The site of its jobs.
        random: Moments, from the seed.
        runs: Its flow runs.
        extra_attempts: Attempts that the trial makes beyond one for each key.
        live_jobs: Jobs that the trial rightly leaves running: it ends them itself.
        delays: Seconds from a cancel to the site's accepting ours.
        lags: Seconds from there to the job's end.
        stopped: Whether it holds the site's queue.
    """

    world: World
    site: str
    random: random.Random
    runs: list[FlowRun] = field(default_factory=list)
    extra_attempts: int = 0
    live_jobs: int = 0
    delays: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    stopped: bool = False

    def start(
        self, shape: str = "held", *, sites: Sequence[str] = (), office: str = "first", **parameters: Any
    ) -> FlowRun:
        """Run a deployed flow that submits one run to each site."""
        run = self._new(office, sites)
        name = f"held/{shape}" if shape in (DOOMED, SERVED) else f"{shape}/{shape}"
        jobs = [f"train-{site}" for site in run.sites]
        run.id = run.office.api.run_deployment(name, {"jobs": jobs, "mark": run.mark, **parameters})
        return run

    def start_by_hand(self, shape: str = "held", *, sites: Sequence[str] = (), seconds: float = 600) -> FlowRun:
        """Run a flow as `python flow.py` does: no deployment, no worker."""
        run = self._new("first", sites)
        jobs = [f"train-{site}" for site in run.sites]
        run.process = self.world.children.start(
            f"hand-{run.mark}",
            "tests.faults.deployed.by_hand",
            shape,
            run.mark,
            str(seconds),
            *jobs,
            api_url=run.office.server.api_url,
        )
        run.wait_begun()
        return run

    def reap(self, office: str = "first", **parameters: Any) -> str:
        """Run the reaper once under a worker, and give its log."""
        api = self.world.offices[office].api
        flow_run = api.run_deployment("reap-runs/reaper", parameters)
        try:
            api.ended(flow_run, "COMPLETED", 120)
        except WrongOutcome as error:
            raise WrongOutcome(f"the reaper: {error}\n" + "\n".join(api.log(flow_run))) from None
        # The log comes to the server later than the state.
        until("the reaper's last line", lambda: any("problems." in line for line in api.log(flow_run)), 60)
        return "\n".join(api.log(flow_run))

    def hold_answer(self, seconds: float = 90.0) -> Callable[[], None]:
        """Let the next POST of a job be served and its answer be held back; gives what waits until that is so."""
        return self._at_post("delay_after", seconds=seconds + self.random.random())

    def take_late(self, seconds: float) -> Callable[[], None]:
        """Cut the connection of the next POST of a job, and serve it later; gives what waits until it is cut."""
        return self._at_post("late", seconds=seconds + self.random.random(), status=None)

    def _at_post(self, action: str, **rule: Any) -> Callable[[], None]:
        rule = {"method": "POST", "route": POSTS[self.site], **rule}
        self.world.sandbox.control.add_fault(action, **rule)

        def met() -> None:
            until("the POST came", lambda: any(_is_used(each, rule) for each in self._faults()), 90)

        return met

    def _faults(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.world.sandbox.control.call("GET", "/faults")
        return found

    def stop_queue(self) -> None:
        """No job of the site starts from now on."""
        self.stopped = True
        self._queue("Maintenance of the trials")

    def open_queue(self) -> None:
        """Jobs start again."""
        self.stopped = False
        self._queue("")

    def _queue(self, reason: str) -> None:
        self.world.sandbox.control.change_site(self.site.partition("-")[0], queue_reason=reason)

    def _new(self, office: str, sites: Sequence[str]) -> FlowRun:
        run = FlowRun(self.world, self.world.offices[office], uuid.uuid4().hex[:12], tuple(sites) or (self.site,))
        self.runs.append(run)
        return run


def _is_used(rule: dict[str, Any], ours: dict[str, Any]) -> bool:
    return rule["used"] > 0 and all(rule[name] == value for name, value in ours.items())


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        name: For `--only`.
        fault: What goes wrong.
        step: When.
        site: Where its jobs go.
        lane: Trials of one lane go one after another.
        play: Does it.
        group: Of cancels, whose times are reported together.
        is_last: Whether it is done after all others, and alone: it meets everybody's jobs.
    """

    name: str
    fault: str
    step: str
    site: str
    lane: str
    play: Callable[[Stage], None]
    group: str = ""
    is_last: bool = False


@dataclass
class Played:
    """What a trial came to.

    Attributes:
        trial: The trial.
        cell: Its numbers.
        error: What was expected and what came, with logs; empty where all is well.
        delays: Seconds from a cancel to the site's accepting ours.
        lags: Seconds from there to the job's end.
    """

    trial: Trial
    cell: Cell
    error: str
    delays: list[float]
    lags: list[float]


def play(trial: Trial, world: World, seed: int) -> Played:
    """Do a trial, and look into the books."""
    stage = Stage(world, trial.site, random.Random(f"{seed}/{trial.name}"))
    error = ""
    try:
        trial.play(stage)
    except Exception as caught:  # noqa: BLE001  # whatever goes wrong is this trial's result
        expected = isinstance(caught, WrongOutcome)
        error = str(caught) if expected else traceback.format_exc(limit=-4)
    cell = _cell(trial, stage, bool(error))
    if error or cell.broken():
        error = "\n".join([error or "; ".join(cell.broken()), *_evidence(stage)])
    _clear(stage)
    return Played(trial, cell, error, stage.delays, stage.lags)


def _cell(trial: Trial, stage: Stage, is_wrong: bool) -> Cell:
    books = stage.world.books

    def settled() -> bool:
        live = [job for run in stage.runs for job in run.jobs() if job["live"]]
        return len(live) <= stage.live_jobs and len(_open(stage)) <= stage.live_jobs

    with contextlib.suppress(WrongOutcome):  # the numbers say it
        until("settled", settled, PATIENCE, pause=1)
    jobs = [job for run in stage.runs for job in run.jobs()]
    live = sum(job["live"] for job in jobs)
    logical = sum(len(run.sites) for run in stage.runs)
    return Cell(
        kind=KINDS[trial.site],
        fault=trial.fault,
        step=trial.step,
        trials=1,
        logical_runs=logical,
        attempts=logical + stage.extra_attempts,
        jobs=len(jobs),
        overlapping=overlapping(jobs),
        left_running=max(0, live - stage.live_jobs),
        mlflow_runs=sum(len(books.mlflow_runs(run.prefix)) for run in stage.runs if run.id),
        wrong_outcomes=int(is_wrong),
        mlflow_open=max(0, len(_open(stage)) - stage.live_jobs),
        layer="b",
    )


def _open(stage: Stage) -> list[dict[str, Any]]:
    runs = [info for run in stage.runs if run.id for info in stage.world.books.mlflow_runs(run.prefix)]
    return [info for info in runs if info["status"] in ("RUNNING", "SCHEDULED")]


def _evidence(stage: Stage) -> list[str]:
    lines = []
    for run in stage.runs:
        lines.append(f"flow run {run.id}, begun {len(run.begun())} times")
        with contextlib.suppress(httpx.HTTPError):  # a server may not know it any more
            lines += [f"  {line}" for line in run.office.api.states(run.id)]
            lines += [f"  {line}" for line in run.log()[-25:]]
        for job in run.jobs():
            lines.append(f"  job {job['site']} {job['number']} {job['state']} submitted {job['submitted']}")
    return lines


def _clear(stage: Stage) -> None:
    """End what a trial left behind, so that it does not disturb others."""
    if stage.stopped:
        stage.open_queue()
    for run in stage.runs:
        for job in run.jobs():
            if job["live"]:
                stage.world.sandbox.control.end_job(job["id"])
        for entry in run.begun():
            with contextlib.suppress(ProcessLookupError):
                os.kill(entry["pid"], signal.SIGKILL)


__all__ = ["KINDS", "FlowRun", "Played", "Stage", "Trial", "WrongOutcome", "kill", "play", "until"]
