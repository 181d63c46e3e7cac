"""The flow's process is killed, with its worker or without: the flow run ends Crashed, and Retry finds the same job."""

from __future__ import annotations

import contextlib
import subprocess
import time

from tests.faults.deployed.prefect_api import WrongOutcome
from tests.faults.deployed.processes import HEARTBEAT
from tests.faults.deployed.setup_server import DOOMED, LATE
from tests.faults.deployed.stage import FlowRun, Stage, Trial, kill, until


def at_submit(stage: Stage) -> None:
    """The POST is served, the answer never read: nothing of ours knows the job."""
    stage.stop_queue()
    held = stage.hold_answer()
    run = stage.start(seconds=4)
    run.wait_begun()
    held()
    run.wait_jobs()
    run.kill()
    run.crashed()
    run.retry()
    stage.open_queue()
    run.ended("COMPLETED", 150)


def and_it_is_taken_later(stage: Stage) -> None:
    """The site takes the job only after the next try has looked: an announcement alone tells of it."""
    cut = stage.take_late(LATE)
    run = stage.start(seconds=4)
    run.wait_begun()
    cut()
    run.kill()
    run.crashed()
    run.retry()
    if run.jobs():
        raise WrongOutcome("the job was there before the next try looked: this machine was too slow to try this")
    run.ended("COMPLETED", 150)


def in_queue(stage: Stage) -> None:
    stage.stop_queue()
    run = stage.start(seconds=4)
    run.wait_begun()
    run.wait_jobs("QUEUED")
    run.wait_logged("Submitted")
    run.kill()
    run.crashed()
    run.retry()
    run.wait_logged("Found")
    stage.open_queue()
    run.ended("COMPLETED", 120)


def while_running(stage: Stage) -> None:
    run = stage.start(seconds=40)
    run.wait_begun()
    run.wait_jobs("RUNNING")
    run.wait_waiting()
    time.sleep(stage.random.uniform(0, 3))  # at any moment between two polls
    run.kill()
    run.crashed()
    run.retry()
    run.ended("COMPLETED", 120)


def and_the_job_ends_first(stage: Stage) -> None:
    """The job comes to its end while nobody looks."""
    run = stage.start(seconds=12)
    run.wait_begun()
    run.wait_jobs("RUNNING")
    run.wait_logged("Submitted")
    run.kill()
    run.crashed()
    until("the job ends", lambda: not any(job["live"] for job in run.jobs()), 60)
    run.retry()
    run.ended("COMPLETED", 120)


def host_dies(stage: Stage) -> None:
    """Nobody is left to say so but the heartbeats that stay away."""
    office = stage.world.offices["first"]
    ready = stage.world.children.run(
        "heartbeat", "tests.faults.deployed.heartbeat", str(3 * HEARTBEAT), api_url=office.server.api_url
    )
    assert "ready" in ready
    worker = office.server.worker("doomed-host", DOOMED)
    run = stage.start(DOOMED, seconds=150)
    run.wait_begun()
    run.wait_jobs("RUNNING")
    run.wait_waiting()
    # One heartbeat at least, or the server knows of no flow run that fell silent.
    until("a heartbeat", lambda: _heartbeats(run), 60)
    _host_death(run, worker)
    run.ended("CRASHED", 5 * HEARTBEAT)
    another = office.server.worker("another-host", DOOMED)
    try:
        run.retry()
        run.ended("COMPLETED", 200)
    finally:
        kill(another)


def _host_death(run: FlowRun, worker: subprocess.Popen[bytes]) -> None:
    kill(worker)
    with contextlib.suppress(ProcessLookupError):  # it may have been among the worker's descendants
        run.kill()


def _heartbeats(run: FlowRun) -> bool:
    found = run.office.api.request(
        "POST",
        "/events/filter",
        {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}, "any_resource": {"id": [_resource(run)]}}},
    )
    return bool(found["events"])


def _resource(run: FlowRun) -> str:
    return f"prefect.flow-run.{run.id}"


def _trial(name: str, fault: str, step: str, site: str, play: object, lane: str = "") -> Trial:
    where = lane or ("platform" if site in ("alder", "cedar-behind") else site.removesuffix("-late"))
    return Trial(f"{name}-{site}", fault, step, site, where, play)  # type: ignore[arg-type]


_KILL = "SIGKILL of the flow"
TRIALS = [
    *(_trial("kill-at-submit", _KILL, "submit", site, at_submit) for site in ("alder", "birch", "cedar")),
    *(
        _trial("kill-late", _KILL, "submit, taken later", site, and_it_is_taken_later)
        for site in ("birch-late", "cedar-late")
    ),
    *(_trial("kill-in-queue", _KILL, "queued", site, in_queue) for site in ("birch", "cedar-behind")),
    *(_trial("kill-running", _KILL, "running", site, while_running) for site in ("alder", "cedar")),
    _trial("kill-job-ends", _KILL, "job ends meanwhile", "birch", and_the_job_ends_first),
    _trial("host-dies", "worker and flow die", "running", "alder-direct", host_dies, lane="host"),
]
