"""How long to wait before a run is asked again."""

from __future__ import annotations

import random
from datetime import datetime
from typing import NamedTuple

from prefect_mantik.runs import RunState, RunStatus

SHARE = 0.1
"""Of a run's age: who has waited an hour does not mind six minutes, and never waits longer than a minute."""

AFTER_EXPECTED = 2.0
"""Seconds after the moment for which a site expects a change."""


class Bounds(NamedTuple):
    """Seconds between two polls of a run.

    Attributes:
        shortest: At least.
        longest: At most.
        queued: At most, while it waits in a queue.
    """

    shortest: float
    longest: float
    queued: float


def pause(status: RunStatus | None, watched: float, bounds: Bounds) -> float:
    """Seconds until a run is to be asked again.

    A tenth of its age, within bounds; sooner where the site expects a change. Its age is how long it has waited or
    run, by the site's clock, but never less than it was watched here.

    Args:
        status: What was told last; None where nothing ever was.
        watched: Seconds since its state was first seen here.
        bounds: Between which.
    """
    if status is None:
        return min(max(SHARE * watched, bounds.shortest), bounds.longest)
    longest = max(bounds.longest, bounds.queued) if status.state is RunState.SCHEDULED else bounds.longest
    regular = min(max(SHARE * max(age(status), watched), bounds.shortest), longest)
    expected = _seconds(status.observed_at, status.expected_at)
    if expected is not None and 0 < expected < regular:
        return max(expected + AFTER_EXPECTED, bounds.shortest)
    return regular


def jittered(status: RunStatus | None, watched: float, bounds: Bounds) -> float:
    """As `pause`, or up to a twenty-fifth sooner; but never so soon that an expected change is just missed."""
    seconds = pause(status, watched, bounds) * random.uniform(0.96, 1.0)  # noqa: S311
    expected = _seconds(status.observed_at, status.expected_at) if status else None
    return expected + AFTER_EXPECTED if expected and seconds < expected + AFTER_EXPECTED < 1.15 * seconds else seconds


def age(status: RunStatus) -> float:
    """Seconds for which a run has waited, or run, when it was asked, by the clock that told both; 0 if not told.

    Where a site does not tell when a job began, it counts from when it was sent.
    """
    since = status.queued_at if status.state is RunState.SCHEDULED else status.started_at or status.queued_at
    return max(0.0, _seconds(since, status.observed_at) or 0.0)


def after_failures(failures: int, bounds: Bounds) -> float:
    """Seconds until an account is asked again that could not be asked several times on end."""
    return float(min(bounds.shortest * 2 ** min(failures, 20), bounds.longest))


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    return (end - start).total_seconds() if start and end else None
