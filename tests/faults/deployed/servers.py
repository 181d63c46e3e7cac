"""The Prefect server itself dies and comes back, with its database at the same port."""

from __future__ import annotations

from tests.faults.deployed.stage import Stage, Trial, until


def while_waiting(stage: Stage) -> None:
    """The job ends while there is no server. What the flow cannot report it reports later, or Retry does."""
    office = stage.world.offices["second"]
    run = stage.start(office="second", seconds=20)
    run.wait_begun()
    run.wait_jobs("RUNNING")
    run.wait_waiting()
    printed = stage.world.children.directory / "second-worker.log"
    before = printed.stat().st_size
    office.server.kill()
    # Seen by the flow while there is no server: what it then does for the run must not be lost.
    until("the wait sees the end", lambda: b"FINISHED" in printed.read_bytes()[before:], 90)
    office.server.start()
    office.server.wait_ready()
    _delivered(stage, "Completed or an end that Retry mends")


def during_submit(stage: Stage) -> None:
    """The site took the job, and there is no server to note it with."""
    office = stage.world.offices["second"]
    stage.stop_queue()
    held = stage.hold_answer(6)
    run = stage.start(office="second", seconds=6)
    run.wait_begun()
    held()
    run.wait_jobs()  # the request came; its body too
    office.server.kill()
    run.wait_jobs()
    office.server.start()
    office.server.wait_ready()
    stage.open_queue()
    _delivered(stage, "Completed or an end that Retry mends")


def _delivered(stage: Stage, what: str) -> None:
    [run] = stage.runs
    ends = {"COMPLETED", "FAILED", "CRASHED"}
    state = until(what, lambda: _type(run.office.api.state(run.id), ends), 150, pause=1)
    if state == "COMPLETED":
        return
    run.retry()
    run.ended("COMPLETED", 120)


def _type(state: dict[str, str], ends: set[str]) -> str:
    return state["type"] if state["type"] in ends else ""


TRIALS = [
    Trial("server-waiting-unicore", "Prefect server killed", "running", "alder-direct", "second", while_waiting),
    Trial("server-waiting-rest", "Prefect server killed", "running", "cedar-rest", "second", while_waiting),
    Trial("server-submit-rest", "Prefect server killed", "submit", "cedar-rest", "second", during_submit),
]
