"""What no hook ended: the reaper, run once, ends jobs of cancelled flow runs of its own server, and no others."""

from __future__ import annotations

import contextlib

from tests.faults.deployed.setup_server import DOOMED, POOL
from tests.faults.deployed.stage import FlowRun, Stage, Trial, WrongOutcome, kill, until
from tests.faults.deployed.world import CANCELLING_TIMEOUT

AT_ONCE = 0.0003
"""Hours, about a second."""


def _all_ended(run: FlowRun) -> None:
    until("the reaper ends the jobs", lambda: not any(job["live"] for job in run.jobs()), 15)


def _none_touched(run: FlowRun) -> None:
    asked = [job["number"] for job in run.jobs() if run.world.books.cancelled_at(job)]
    if asked or not all(job["live"] for job in run.jobs()):
        raise WrongOutcome(f"jobs {asked} were cancelled, and are none of the reaper's business")


def site_down(stage: Stage) -> None:
    """The hook finds the sites down and says so; later the reaper finds them up."""
    control = stage.world.sandbox.control
    run = stage.start(sites=("birch", "cedar"))
    run.wait_begun()
    run.wait_jobs("RUNNING")
    run.wait_waiting()
    for route in ("/BIRCH/*", "/firecrest/*"):
        control.add_fault("status", route=route, status=503, times=None)
    try:
        run.cancel()
        run.ended("CANCELLED", 120)
        if not all(job["live"] for job in run.jobs()):
            raise WrongOutcome("a job ended at a site that was down")
        run.wait_logged("may be live")
    finally:
        control.clear_faults()
    stage.reap()
    _all_ended(run)


def without_hook(stage: Stage) -> None:
    run = stage.start("unhooked", sites=("birch", "cedar", "alder"))
    run.wait_begun()
    run.wait_jobs("RUNNING")
    run.cancel()
    run.ended("CANCELLED", 120)
    _none_touched(run)
    stage.reap()
    _all_ended(run)


def host_dead(stage: Stage) -> None:
    """Nobody is there to be told: Prefect gives up after its time, and no hook runs."""
    office = stage.world.offices["second"]
    worker = office.server.worker("second-doomed", DOOMED)
    run = stage.start(DOOMED, office="second")
    run.wait_begun()
    run.wait_jobs("RUNNING")
    run.wait_waiting()
    kill(worker)
    with contextlib.suppress(ProcessLookupError):  # it may have been among the worker's descendants
        run.kill()
    run.cancel()
    run.ended("CANCELLED", 3 * CANCELLING_TIMEOUT + 60)
    _none_touched(run)
    stage.reap("second")
    _all_ended(run)


def two_servers(stage: Stage) -> None:
    """One account at the site, two Prefect servers: each reaper knows its own flow runs only."""
    sites = ("cedar", "birch")
    ours, theirs = stage.start("unhooked", sites=sites), stage.start("unhooked", sites=sites, office="second")
    for run in (ours, theirs):
        run.wait_begun()
        run.wait_jobs("RUNNING")
        run.cancel()
    for run in (ours, theirs):
        run.ended("CANCELLED", 120)
    stage.reap("second", reap_unknown=True, older_than_hours=AT_ONCE)
    _all_ended(theirs)
    _none_touched(ours)
    stage.reap("first", reap_unknown=True, older_than_hours=AT_ONCE)
    _all_ended(ours)


def older_database(stage: Stage) -> None:
    """The server's database is put back to a backup from before the flow runs: it does not know them any more.

    At a UNICORE site, whose own clock tells a job's age: at FirecREST our record in its directory does.
    """
    office = stage.world.offices["second"]
    copy = office.server.keep_copy()
    young, old = stage.start("unhooked", office="second"), stage.start("unhooked", office="second")
    for run in (young, old):
        run.wait_begun()
        run.wait_jobs("RUNNING")
        run.kill()
    kill(office.worker)
    office.server.kill()
    office.server.go_back_to(copy)
    office.server.start()
    office.server.wait_ready()
    office.worker = office.server.worker("second-worker", POOL)
    log = stage.reap("second")
    for run in (young, old):
        _none_touched(run)
        said = [line for line in log.splitlines() if "does not know" in line]
        for job in run.jobs():
            if not any(str(job["number"]) in line or job["id"] in line for line in said):
                raise WrongOutcome(f"the reaper does not report job {job['number']}, which Prefect forgot:\n{log}")
    for job in old.jobs():
        stage.world.sandbox.control.age_job(job["id"], 7200)
    stage.reap("second", reap_unknown=True, older_than_hours=1)
    _all_ended(old)
    _none_touched(young)
    stage.live_jobs = 1


TRIALS = [
    Trial("site-down", "Cancel, site down, reaper", "running", "birch", "", site_down, is_last=True),
    Trial("no-hook", "Cancel, no hook, reaper", "running", "cedar", "", without_hook, is_last=True),
    Trial("two-servers", "two servers, one account", "reaper", "cedar", "", two_servers, is_last=True),
    Trial("host-dead", "Cancel, host dead, reaper", "running", "alder-direct", "second", host_dead),
    Trial("old-database", "database older than the jobs", "reaper", "alder-direct", "second", older_database),
]
