"""What one wait makes of what it is told of its runs: lines in the log, and when to stop and ask."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from prefect_mantik.log import duration, run_logger
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting import clock
from prefect_mantik.waiting.poller import with_observed_start


@dataclass(eq=False)
class Watched:
    """What was seen of one run.

    Attributes:
        handle: Which run.
        site: Its site, as it was opened last.
        status: What was told last, but for what could not be asked.
        paused: Whether its site's login is refused.
        given_up: Silent for as long as its site allows.
        unknown_since: When it could first not be asked, while it still cannot.
        unknown: Why not.
        changed: When it gave the last sign of life.
        life_at: The newest trace that the run itself left.
        warned: Whether its silence was said.
        stuck: Why it will not start by itself, as far as that was said.
        trouble: Why its site cannot be opened anew, as far as that was said.
    """

    handle: RunHandle
    site: Site
    status: RunStatus | None = None
    paused: bool = False
    given_up: bool = False
    unknown_since: float | None = None
    unknown: str = ""
    changed: float = field(default_factory=clock.monotonic)
    life_at: datetime | None = None
    warned: bool = False
    stuck: str = ""
    trouble: str = ""

    @property
    def ended(self) -> bool:
        """Whether the wait for it is over."""
        return self.given_up or (self.status is not None and self.status.state.is_end)

    def take(self, status: RunStatus) -> None:
        """Take a status over that is known, and say so if it is another one."""
        before, self.status = self.status, with_observed_start(self.status, status)
        if before is None or before.state is not status.state:
            self.changed, self.warned = clock.monotonic(), False
            run_logger().log(_level(status), "%s: %s", self.handle.describe(), _change(self.status))
        self._say_stuck(status)
        if status.life_at != self.life_at:
            self.life_at, self.changed, self.warned = status.life_at, clock.monotonic(), False

    def _say_stuck(self, status: RunStatus) -> None:
        """Say it once for each cause: a job that waits for ever costs nothing, and brings nothing home."""
        stuck = stuck_because(status)
        if stuck and stuck != self.stuck:
            run_logger().warning("%s will not start by itself: %s", self.handle.describe(), stuck)
        self.stuck = stuck


def stuck_because(status: RunStatus) -> str:
    """Why a run will not start by itself; empty where it may."""
    return (status.message or status.site_word) if status.reason is Reason.STUCK else ""


def take(told: Sequence[tuple[Watched, RunStatus]], runs: Sequence[Watched]) -> None:
    """Take over what was told, and say what is new; one line for all runs that cannot be asked for one cause.

    Args:
        told: Of which runs.
        runs: All that are waited for.
    """
    last = dict(told)
    told = [one for one in told if one[1].state is not RunState.UNKNOWN or one[1] is last[one[0]]]
    lost = [one for one in told if one[1].state is RunState.UNKNOWN and one[0].unknown_since is None]
    found = [run for run, status in told if status.state is not RunState.UNKNOWN and run.unknown_since is not None]
    if lost:
        _say_lost(lost, {_trouble(run) for run in runs if run.unknown_since is not None})
    if found:
        _say_found(found, runs)
    for run, status in told:
        run.paused = _is_paused(status)
        if status.state is not RunState.UNKNOWN:
            run.take(status)


def _say_lost(lost: Iterable[tuple[Watched, RunStatus]], said: set[tuple[str, str]]) -> None:
    by_trouble: dict[tuple[str, str], list[Watched]] = {}
    for run, status in lost:
        run.unknown_since, run.unknown = clock.monotonic(), status.site_word
        run.paused = _is_paused(status)
        by_trouble.setdefault(_trouble(run), []).append(run)
    for trouble, theirs in by_trouble.items():
        what_next = (
            "Waiting goes on, and asks again when the credentials change."
            if theirs[0].paused
            else "The job is not touched; asking again until it answers."
            if len(theirs) == 1
            else "The jobs are not touched; asking again until it answers."
        )
        if trouble not in said:
            run_logger().warning("%s: state unknown. %s %s", _called(theirs), theirs[0].unknown, what_next)


def _say_found(found: Sequence[Watched], runs: Sequence[Watched]) -> None:
    back: dict[tuple[str, str], dict[Watched, float]] = {}
    for run in found:
        if run.unknown_since is not None:  # else it is told twice
            silent = clock.monotonic() - run.unknown_since
            back.setdefault(_trouble(run), {})[run] = silent
            run.unknown_since = None
            run.changed += silent  # nobody could have seen a sign of life meanwhile
    left = {_trouble(run) for run in runs if run.unknown_since is not None}
    for trouble, theirs in back.items():
        if trouble not in left:
            run_logger().info("%s: can be asked again after %.0f s.", _called([*theirs]), max(theirs.values()))


def _is_paused(status: RunStatus) -> bool:
    return status.state is RunState.UNKNOWN and status.reason is Reason.PAUSED


def _trouble(run: Watched) -> tuple[str, str]:
    return run.site.name, run.unknown


def _called(runs: Sequence[Watched]) -> str:
    """One run by its name, more by their number."""
    return runs[0].handle.describe() if len(runs) == 1 else f"{len(runs)} training runs at {runs[0].site.name}"


def heed_silence(runs: Iterable[Watched]) -> None:
    """Warn of runs that give no sign of life, and give up those whose site's block says so."""
    for run in runs:
        if run.status is None or run.status.state is not RunState.RUNNING or run.unknown_since is not None:
            continue
        silent = clock.monotonic() - run.changed
        if run.site.silence_limit and silent > run.site.silence_limit:
            run.given_up = True
        elif run.site.silence_warning and silent > run.site.silence_warning and not run.warned:
            run.warned = True
            run_logger().warning(silence(run, "Waiting goes on"))


def silence(run: Watched, what_next: str) -> str:
    """What to say of a run that gives no sign of life."""
    link = next(iter(run.handle.links.values()), "")
    return (
        f"{run.handle.describe()}: no sign of life for {clock.monotonic() - run.changed:.0f} s. {run.site.name} tells "
        "no more than what the run itself logs: it may be computing, or dead. Look at the site"
        f"{f' or at {link}' if link else ''}. {what_next}."
    )


def _change(status: RunStatus) -> str:
    waited = _seconds(status.queued_at, status.started_at)
    if status.state is RunState.RUNNING:
        return f"{status.describe()}{f', waited {waited} in the queue' if waited else ''}"
    ran = _seconds(status.started_at or status.queued_at, status.ended_at)
    if status.state.is_end and ran:
        return f"{status.describe()} after {ran}{'' if status.started_at else ', queue included'}"
    return status.describe()


def _seconds(start: datetime | None, end: datetime | None) -> str:
    return duration((end - start).total_seconds()) if start and end else ""


def _level(status: RunStatus) -> int:
    if status.reason is Reason.CANCELLED_BY_US:
        return logging.WARNING
    return logging.ERROR if status.state.is_end and status.state is not RunState.FINISHED else logging.INFO
