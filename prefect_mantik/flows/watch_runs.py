"""Resume suspended flow runs whose training runs have ended. Deploy it on a schedule, once for each Prefect server."""

from __future__ import annotations

from asyncio import sleep
from time import monotonic

from prefect import flow, get_run_logger

from prefect_mantik.lifecycle.watcher import Watched, Watcher
from prefect_mantik.loop import call
from prefect_mantik.suspending import WATCHER

PAUSE = 30.0
"""Seconds between two rounds of one flow run of the watcher."""


@flow(name=WATCHER)
def watch_runs(for_seconds: float = 0.0) -> Watched:
    """Ask the training runs of all flow runs that `wait="suspend"` suspended, and resume those whose runs have ended.

    A flow run whose wait has a timeout is resumed when that passes. One that somebody suspended for another reason is
    left alone. What cannot be asked is said, and asked again by the next round.

    Args:
        for_seconds: Do one round after the other for so long. By default one round.
    """
    return call(_rounds, for_seconds)


async def _rounds(for_seconds: float) -> Watched:
    watcher, until = Watcher(), monotonic() + for_seconds
    try:
        while True:
            watched = await watcher.watch()
            get_run_logger().info(watched.describe())
            for each in watched.resumed:
                get_run_logger().info(
                    "Resumed %s: %d of %d runs ended. %s", each.name, each.ended, each.runs, each.link
                )
            if monotonic() + PAUSE > until:
                return watched
            await sleep(PAUSE)
    finally:
        await watcher.leave()
