"""Cancel, as the UI's button does it, at each step of a flow run and in each shape of a wait."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.deployed.cancel_times import BY_HAND, KILLED_FIRST, UNDER_A_WORKER
from tests.faults.deployed.stage import SERVED, FlowRun, Stage, Trial, until

LONGEST = 120.0
"""Seconds until a cancelled flow run must be Cancelled."""


def _cancel(stage: Stage, run: FlowRun) -> None:
    called = run.cancel()
    run.ended("CANCELLED", LONGEST)
    stage.delays += run.cancel_delays(called)
    stage.lags += run.site_lags()


def during_submit(stage: Stage) -> None:
    """The POST is served, its answer under way. The job must not outlive the flow run."""
    held = stage.hold_answer(8)
    run = stage.start()
    run.wait_begun()
    held()
    run.wait_jobs()  # the request came; its body too
    called = run.cancel()
    run.ended("CANCELLED", LONGEST)
    run.cancel_delays(called)


def in_queue(stage: Stage) -> None:
    stage.stop_queue()
    run = stage.start()
    run.wait_begun()
    run.wait_jobs("QUEUED")
    run.wait_logged("Submitted")
    called = run.cancel()
    run.ended("CANCELLED", LONGEST)
    run.cancel_delays(called)


def _running(shape: str, *sites: str) -> Callable[[Stage], None]:
    def play(stage: Stage) -> None:
        run = stage.start(shape, sites=sites)
        run.wait_begun()
        run.wait_jobs("RUNNING")
        run.wait_waiting()
        _cancel(stage, run)

    return play


def under_serve(stage: Stage) -> None:
    """No worker: the flow's own server is the runner."""
    office = stage.world.offices["first"]
    stage.world.children.start(
        "serve", "tests.faults.deployed.by_hand", "serve", "", "0", api_url=office.server.api_url
    )

    def is_there() -> bool:
        found = office.api.request(
            "POST", "/deployments/filter", {"deployments": {"name": {"any_": [SERVED]}}, "limit": 1}
        )
        return bool(found) and found[0]["status"] == "READY"

    until("the flow is served", is_there, 90)
    run = stage.start(SERVED)
    run.wait_begun()
    run.wait_jobs("RUNNING")
    run.wait_waiting()
    _cancel(stage, run)


def _by_hand(shape: str) -> Callable[[Stage], None]:
    def play(stage: Stage) -> None:
        run = stage.start_by_hand(shape)
        run.wait_jobs("RUNNING")
        run.wait_waiting()
        _cancel(stage, run)

    return play


def _timed(group: str, step: str, name: str, site: str, play: Callable[[Stage], None]) -> Trial:
    return Trial(f"cancel-{name}", "Cancel", step, site, "", play, group)


TRIALS = [
    Trial("cancel-submit-alder", "Cancel", "submit", "alder", "platform", during_submit),
    Trial("cancel-submit-birch", "Cancel", "submit", "birch", "birch", during_submit),
    Trial("cancel-submit-cedar", "Cancel", "submit", "cedar", "cedar", during_submit),
    Trial("cancel-queued-birch", "Cancel", "queued", "birch", "birch", in_queue),
    Trial("cancel-queued-cedar", "Cancel", "queued", "cedar", "cedar", in_queue),
    _timed(UNDER_A_WORKER, "direct wait", "direct-alder", "alder", _running("held")),
    _timed(UNDER_A_WORKER, "direct wait", "direct-birch", "birch", _running("held")),
    _timed(UNDER_A_WORKER, "direct wait", "direct-cedar", "cedar", _running("held", "cedar", "birch")),
    _timed(UNDER_A_WORKER, "gather", "gather-birch", "birch", _running("gathered", "birch", "cedar", "alder")),
    _timed(UNDER_A_WORKER, "gather", "gather-cedar", "cedar", _running("gathered", "cedar", "cedar")),
    _timed(UNDER_A_WORKER, "child flow", "child-behind", "cedar-behind", _running("parent")),
    _timed(UNDER_A_WORKER, "under serve", "serve-cedar", "cedar", under_serve),
    _timed(KILLED_FIRST, ".map", "map-alder", "alder", _running("mapped", "alder", "alder")),
    _timed(KILLED_FIRST, ".map", "map-birch", "birch", _running("mapped", "birch", "birch")),
    _timed(KILLED_FIRST, ".map", "map-cedar", "cedar", _running("mapped", "cedar")),
    _timed(KILLED_FIRST, ".submit", "submitted-birch", "birch", _running("submitted", "birch", "cedar")),
    _timed(KILLED_FIRST, ".submit", "submitted-cedar", "cedar", _running("submitted", "cedar")),
    _timed(
        KILLED_FIRST, "child flow, .map", "child-map-birch", "birch", _running("parent-of-mapped", "birch", "cedar")
    ),
    _timed(BY_HAND, "by hand, direct", "hand-alder", "alder", _by_hand("held")),
    _timed(BY_HAND, "by hand, direct", "hand-birch", "birch", _by_hand("held")),
    _timed(BY_HAND, "by hand, direct", "hand-cedar", "cedar", _by_hand("held")),
    _timed(BY_HAND, "by hand, gather", "hand-gather-birch", "birch", _by_hand("gathered")),
    _timed(BY_HAND, "by hand, child flow", "hand-child-cedar", "cedar", _by_hand("parent")),
    _timed(BY_HAND, "by hand, .map", "hand-map-birch", "birch", _by_hand("mapped")),
]
