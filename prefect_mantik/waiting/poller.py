"""Poll runs until they end: one call for all runs of an account, less often the longer it takes."""

from __future__ import annotations

import asyncio
import logging
import random
from asyncio import sleep
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic

from prefect_mantik.errors import SiteSilent, WaitTimeout
from prefect_mantik.log import run_logger
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site

SHORTEST, LONGEST = 1.0, 60.0
"""Seconds between two polls of an account, from one tenth of the time waited so far."""

_ONE_ROUND = 5.0

LAST_TENDS = (1.0, 2.0, 4.0)
"""Pauses in seconds before the books of runs that ended are tried again: who waits wants the result."""

TEND_TIMEOUT = 30.0
"""Seconds that a site may take to help a run along."""

Reopen = Callable[[RunHandle], Awaitable[Site]]
"""Opens the site of a run anew, with the credentials that are saved now."""


@dataclass
class _Watched:
    """What was seen of one run."""

    handle: RunHandle
    site: Site
    status: RunStatus | None = None
    unknown_since: float | None = None
    """When it could first not be asked, while it still cannot."""
    changed: float = field(default_factory=lambda: monotonic())
    life_at: datetime | None = None
    warned: bool = False
    stuck: str = ""
    """Why it will not start by itself, as far as that was said."""
    trouble: str = ""
    tend_trouble: str = ""
    given_up: bool = False
    """Silent for as long as its site allows."""

    @property
    def ended(self) -> bool:
        return self.given_up or (self.status is not None and self.status.state.is_end)


async def wait_until_ended(
    sites: Mapping[RunHandle, Site], *, reopen: Reopen, timeout: float | None = None
) -> dict[RunHandle, RunStatus]:
    """Wait until every run ended, and return their last statuses. Changes of state are logged, and nothing else.

    Args:
        sites: The site of each run.
        reopen: What gives a site anew after its login was refused.
        timeout: Seconds after which to stop waiting. None: no limit.

    Raises:
        WaitTimeout: The time passed first.
        SiteSilent: Runs gave no sign of life for as long as their site allows; all others ended.
    """
    watched = [_Watched(handle, site) for handle, site in sites.items()]
    accounts: dict[Hashable, list[_Watched]] = {}
    for run in watched:
        accounts.setdefault((run.site.kind, run.site.account), []).append(run)
    waits = [asyncio.ensure_future(_wait_for_account(runs, reopen)) for runs in accounts.values()]
    try:
        # A short time is long enough to ask once: what has ended is no time-out.
        await asyncio.wait_for(asyncio.gather(*waits), timeout if timeout is None else max(timeout, _ONE_ROUND))
    except (asyncio.TimeoutError, TimeoutError):
        left = [run.handle for run in watched if not run.ended]
        if left:  # else all ended, and only their books were being closed
            listed = ", ".join(handle.describe() for handle in left)
            raise WaitTimeout(
                f"{len(left)} of {len(watched)} training runs had not ended after {timeout:.0f} s: {listed}.", left
            ) from None
    finally:
        for wait in waits:
            wait.cancel()
    silent = [run for run in watched if run.given_up]
    if silent:
        raise SiteSilent(
            "\n".join(_silence(run, "The wait stops here, the job was left alone") for run in silent),
            [run.handle for run in silent],
        )
    return {run.handle: run.status for run in watched if run.status}


async def _wait_for_account(runs: Sequence[_Watched], reopen: Reopen) -> None:
    began = monotonic()
    while True:
        open_runs = [run for run in runs if not run.ended]
        if not open_runs:
            return
        statuses = await open_runs[0].site.poll([run.handle for run in open_runs])
        for run in open_runs:
            _take(run, statuses[run.handle])
        again = await _tend(open_runs, statuses)
        if all(run.ended for run in runs):
            await _tend_the_ended(runs)
            return
        _heed_silence(open_runs)
        if any(status.state is RunState.UNKNOWN and status.reason is Reason.PAUSED for status in statuses.values()):
            await _reopen(open_runs[0], reopen)
        pause = min(max((monotonic() - began) / 10, SHORTEST), LONGEST)
        await sleep(min(pause * random.uniform(0.8, 1.2), again * random.uniform(0.8, 1.0)))  # noqa: S311  # jitter


async def _tend(runs: Sequence[_Watched], statuses: Mapping[RunHandle, RunStatus]) -> float:
    """Let each run's own site help it along, within bounds; give the seconds until it wants to do so again."""
    helps = [_tend_one(run, statuses[run.handle]) for run in runs]
    return max(SHORTEST, min([*await asyncio.gather(*helps), LONGEST]))


async def _tend_the_ended(runs: Sequence[_Watched]) -> None:
    """Who is away when a run ends (MLflow, Prefect) may be back a moment later: its books are closed then."""
    for pause in LAST_TENDS:
        open_books = [run for run in runs if run.tend_trouble and run.status and run.status.state.is_end]
        if not open_books:
            return
        await sleep(pause)
        await asyncio.gather(*(_tend_one(run, run.status) for run in open_books if run.status))


async def _tend_one(run: _Watched, status: RunStatus) -> float:
    try:
        again = await asyncio.wait_for(run.site.tend({run.handle: status}), TEND_TIMEOUT)
    except Exception as error:  # noqa: BLE001  # help that fails must not end a wait of days
        trouble = str(error) or "no answer in time"
        if trouble != run.tend_trouble:
            run.tend_trouble = trouble
            run_logger().warning("%s: %s", run.handle.describe(), trouble)
        return LONGEST
    run.tend_trouble = ""
    return LONGEST if again is None else again


async def _reopen(run: _Watched, reopen: Reopen) -> None:
    """A refused login is not tried again; a changed block is another account, and asks anew."""
    try:
        run.site = await reopen(run.handle)
    except Exception as error:  # noqa: BLE001  # a block that is being mended, a Prefect that restarts: no end
        if str(error) != run.trouble:
            run.trouble = str(error)
            run_logger().warning("%s: its site cannot be opened now. %s", run.handle.describe(), error)


def _take(run: _Watched, status: RunStatus) -> None:
    """Take a status over, and say so if it is another one."""
    if status.state is RunState.UNKNOWN:
        _say_unknown(run, status)
        return
    if run.unknown_since is not None:
        silent = monotonic() - run.unknown_since
        run_logger().info("%s: can be asked again after %.0f s.", run.handle.describe(), silent)
        run.unknown_since = None
        run.changed += silent  # nobody could have seen a sign of life meanwhile
    before, run.status = run.status, _with_observed_start(run.status, status)
    if before is None or before.state is not status.state:
        run.changed, run.warned = monotonic(), False
        run_logger().log(_level(status), "%s: %s", run.handle.describe(), _change(run.status))
    _say_stuck(run, status)
    if status.life_at != run.life_at:
        run.life_at, run.changed, run.warned = status.life_at, monotonic(), False


def _say_stuck(run: _Watched, status: RunStatus) -> None:
    """Say it once for each cause: a job that waits for ever costs nothing, and brings nothing home."""
    stuck = (status.message or status.site_word) if status.reason is Reason.STUCK else ""
    if stuck and stuck != run.stuck:
        run_logger().warning("%s will not start by itself: %s", run.handle.describe(), stuck)
    run.stuck = stuck


def _say_unknown(run: _Watched, status: RunStatus) -> None:
    if run.unknown_since is None:
        run.unknown_since = monotonic()
        what_next = (
            "Waiting goes on, and asks again when the credentials change."
            if status.reason is Reason.PAUSED
            else "The job is not touched; asking again until it answers."
        )
        run_logger().warning("%s: state unknown. %s %s", run.handle.describe(), status.site_word, what_next)


def _with_observed_start(before: RunStatus | None, status: RunStatus) -> RunStatus:
    """Fill in when the job began, from when we first saw it run, where the site does not tell."""
    if status.started_at is not None:
        return status
    if before is not None and before.started_at is not None:
        return status.model_copy(update={"started_at": before.started_at})
    if before is not None and before.state is RunState.SCHEDULED and status.state is RunState.RUNNING:
        return status.model_copy(update={"started_at": status.observed_at})
    return status


def _change(status: RunStatus) -> str:
    waited = _seconds(status.queued_at, status.started_at)
    if status.state is RunState.RUNNING:
        return f"{status.describe()}{f', waited {waited} in the queue' if waited else ''}"
    ran = _seconds(status.started_at or status.queued_at, status.ended_at)
    if status.state.is_end and ran:
        return f"{status.describe()} after {ran}{'' if status.started_at else ', queue included'}"
    return status.describe()


def _seconds(start: datetime | None, end: datetime | None) -> str:
    if start is None or end is None:
        return ""
    minutes, seconds = divmod(max(0, round((end - start).total_seconds())), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _level(status: RunStatus) -> int:
    if status.reason is Reason.CANCELLED_BY_US:
        return logging.WARNING
    return logging.ERROR if status.state.is_end and status.state is not RunState.FINISHED else logging.INFO


def _heed_silence(runs: Sequence[_Watched]) -> None:
    for run in runs:
        if run.status is None or run.status.state is not RunState.RUNNING or run.unknown_since is not None:
            continue
        silent = monotonic() - run.changed
        if run.site.silence_limit and silent > run.site.silence_limit:
            run.given_up = True
        elif run.site.silence_warning and silent > run.site.silence_warning and not run.warned:
            run.warned = True
            run_logger().warning(_silence(run, "Waiting goes on"))


def _silence(run: _Watched, what_next: str) -> str:
    link = next(iter(run.handle.links.values()), "")
    return (
        f"{run.handle.describe()}: no sign of life for {monotonic() - run.changed:.0f} s. {run.site.name} tells no "
        "more than what the run itself logs: it may be computing, or dead. Look at the site"
        f"{f' or at {link}' if link else ''}. {what_next}."
    )
