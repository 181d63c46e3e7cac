"""New lines of jobs' logs in the flow run's log, while the jobs run; and the logs kept, as files or artifacts."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from prefect.runtime import flow_run as runtime_flow_run

from prefect_mantik.errors import NotSupported, ServiceUnavailable
from prefect_mantik.log import run_logger, without_tokens
from prefect_mantik.runs import RunHandle, RunState
from prefect_mantik.sites.base import Capability, Site
from prefect_mantik.waiting.kept_log import files, open_kept_log
from prefect_mantik.waiting.observing import Observed
from prefect_mantik.waiting.poller import bounds_of
from prefect_mantik.waiting.run_log import WRITE_TIMEOUT, RunLog, Tail
from prefect_mantik.waiting.showing import Latest, Screen

SHORTEST = 10.0
"""Seconds between two reads of a run at least. A tenth of the time since it was first seen to run, at most as long as
its site lets pass between two polls."""

READS_A_SECOND = 2.0
"""Of one account: the more runs it has, the less often each is read."""

LONGEST_AFTER_TROUBLE = 600.0

AT_ONCE = 2
"""Reads in flight for one account. Two more calls stay free for polls."""

PARTS_WHILE_RUNNING, PARTS_AT_END = 8, 128
"""Of `run_log.PART` bytes, that are read of one run before another's turn."""

LOOK_TIME, CLOSE_TIME = 60.0, 20.0
"""Seconds after which no further read begins: the next look goes on; after a close nobody does."""

TRIES_AT_END = 3

_SAID_AT_ONCE = 3

Publish = Callable[[RunHandle, str, bool], Awaitable[None]]
"""Shows the end of a log to people: of which run, as which text, whether that is the whole log."""


@dataclass
class _Followed:
    """What is known of one run's log."""

    handle: RunHandle
    began: float
    due: float = 0.0
    log: RunLog | None = None
    seen_end: bool = False
    is_queued: bool = False
    """Whether it waits in the site's queue again, after it ran."""
    failures: int = 0
    said: bool = False
    done: bool = False
    latest: Latest = field(default_factory=Latest)


class LogFollower:
    """An `Observer` that reads what running jobs write, and shows it.

    Args:
        directory: Where complete logs are kept, if they are.
        flow_run: Id of the flow run, which names a directory below that.
        publish: What shows the end of a log to people, for runs whose logs are not kept as files.
        shows: Whether new lines are shown; else the logs are only kept.
    """

    def __init__(
        self,
        *,
        directory: Path | None = None,
        flow_run: str | None = None,
        publish: Publish | None = None,
        shows: bool = True,
    ) -> None:
        self._directory, self._flow_run, self._publish, self._shows = directory, flow_run, publish, shows
        self._runs: dict[RunHandle, _Followed] = {}
        self._screen = Screen()
        self._troubles: dict[str, list[str]] = {}
        self._disk_said: set[str] = set()
        self._disk_hangs = False

    async def look(self, runs: Mapping[RunHandle, Observed]) -> None:
        """Read what is due, and show it. See `Observer.look`."""
        now = monotonic()
        self._note(runs, now)
        due = [run for run in self._open(runs) if run.due <= now]
        await self._read_all(due, runs, now + LOOK_TIME)

    async def close(self, runs: Mapping[RunHandle, Observed]) -> None:
        """Read the rest of what has ended, and show half lines. See `Observer.close`."""
        now = monotonic()
        self._note(runs, now)
        try:
            await self._read_all([run for run in self._open(runs) if run.seen_end], runs, now + CLOSE_TIME)
        finally:
            self._flush(run for run in self._runs.values() if not run.done)
            self._screen.end_round(at_once=True)

    # --- Which runs, and when ---

    def _note(self, runs: Mapping[RunHandle, Observed], now: float) -> None:
        """Take over what is known of the runs: which run now, and which have ended."""
        for handle, (site, status) in runs.items():
            if status is None or Capability.LOGS not in site.capabilities:
                continue
            run = self._runs.get(handle)
            if run is None and (status.state is RunState.RUNNING or status.state.is_end):
                run = self._runs[handle] = _Followed(handle, now)
            if run is None or run.done:
                continue
            if status.state.is_end and not run.seen_end:
                run.seen_end, run.due, run.failures = True, 0.0, 0
            if status.state is RunState.RUNNING and run.is_queued and run.log:
                run.log.doubt()
            if status.state is not RunState.UNKNOWN:
                run.is_queued = status.state is RunState.SCHEDULED

    def _open(self, runs: Mapping[RunHandle, Observed]) -> list[_Followed]:
        """What may be read now, the longest overdue first."""
        states = {handle: status.state for handle, (_, status) in runs.items() if status}
        found = [
            run
            for handle, run in self._runs.items()
            if not run.done and handle in states and (run.seen_end or states[handle] is RunState.RUNNING)
        ]
        return sorted(found, key=lambda run: run.due)

    def _schedule(self, run: _Followed, site: Site, account_runs: int) -> None:
        now = monotonic()
        pause = max(SHORTEST, min((now - run.began) / 10, bounds_of(site).longest), account_runs / READS_A_SECOND)
        if run.failures:
            pause = min(pause * 2**run.failures, max(pause, LONGEST_AFTER_TROUBLE))
        elif run.seen_end:
            pause = 0.0  # there is more
        run.due = now + pause * random.uniform(0.8, 1.0)  # noqa: S311  # jitter

    # --- Reading ---

    async def _read_all(self, due: Sequence[_Followed], runs: Mapping[RunHandle, Observed], until: float) -> None:
        """Read runs, a few of each account at a time, so that few hold what they read."""
        sizes: dict[Hashable, int] = {}
        for site, _ in runs.values():
            sizes[_account(site)] = sizes.get(_account(site), 0) + 1
        queues: dict[Hashable, deque[_Followed]] = {}
        for run in due:
            queues.setdefault(_account(runs[run.handle].site), deque()).append(run)

        async def work(account: Hashable) -> None:
            while queues[account] and monotonic() < until:
                run = queues[account].popleft()
                if not await _may_be_asked(runs[run.handle].site, until):
                    return  # the next look goes on
                await self._read(run, runs[run.handle], until)
                self._schedule(run, runs[run.handle].site, sizes[account])

        await asyncio.gather(*(work(account) for account in queues for _ in range(AT_ONCE)))
        self._say_troubles()
        self._screen.end_round()

    async def _read(self, run: _Followed, observed: Observed, until: float) -> None:
        """Read one run. What goes wrong is said once and ends nothing."""
        try:
            if run.log is None:
                run.log = await self._opened(run.handle)
            if run.seen_end:
                await self._read_to_end(run, run.log, observed.site, until)
            else:
                await self._read_parts(run, run.log, observed.site, PARTS_WHILE_RUNNING, until)
            run.failures = 0
        except Exception as error:  # noqa: BLE001  # logs are a help: no odd answer may end a wait of days
            run.failures += 1
            lost = observed.status is not None and observed.status.state is RunState.LOST
            self._take_trouble(run, observed.site, error, quietly=lost)
            if run.seen_end and run.failures >= TRIES_AT_END:
                self._flush([run])
                run.done, run.log = True, None
        self._show(run)

    async def _read_parts(self, run: _Followed, log: RunLog, site: Site, most: int, until: float) -> None:
        async for lines in log.parts(site, most, until):
            run.latest.add(lines)
        if log.trouble:
            self._say_disk(log.trouble)

    async def _read_to_end(self, run: _Followed, log: RunLog, site: Site, until: float) -> None:
        if log.kept is not None or self._publish is None:
            await self._read_parts(run, log, site, PARTS_AT_END, until)
            if not log.is_read:
                return  # the next look goes on
        tail: Tail | None = None
        if log.kept is None and self._publish is not None:
            lines, tail = await log.tail(site, until)
            run.latest.add(lines)
        run.latest.add(await log.finish())
        self._show(run)
        if self._publish is not None and tail and tail.text:
            await self._publish(run.handle, tail.text, tail.is_whole)
        run.done, run.log = True, None

    async def _opened(self, handle: RunHandle) -> RunLog:
        if self._directory is None or self._disk_hangs:
            return RunLog(handle)
        opening = asyncio.get_running_loop().run_in_executor(
            files(), open_kept_log, self._directory, self._flow_run, handle
        )
        try:
            return RunLog(handle, await asyncio.wait_for(opening, WRITE_TIMEOUT))
        except (OSError, asyncio.TimeoutError, TimeoutError) as error:
            self._say_disk(error)
            # A disk that hangs would be waited for once a run.
            self._disk_hangs = isinstance(error, (asyncio.TimeoutError, TimeoutError))
            return RunLog(handle)

    # --- Saying ---

    def _show(self, run: _Followed) -> None:
        latest, run.latest = run.latest, Latest()
        if not self._shows:
            return
        kept = run.log.kept if run.log else None
        following = sum(not other.done for other in self._runs.values())
        self._screen.show(run.handle, latest, following, str(kept.path) if kept else "fetch_log reads the whole log")

    def _flush(self, runs: Iterable[_Followed]) -> None:
        """Show half lines of runs that nobody reads any more, and say what was not read."""
        for run in runs:
            if run.log:
                run.latest.add(run.log.half_line())
                if run.seen_end and not run.log.is_read:
                    run.latest.add([f"[the log from byte {run.log.offset or 0} on was not read]"])
                self._show(run)

    def _take_trouble(self, run: _Followed, site: Site, error: Exception, *, quietly: bool) -> None:
        words = without_tokens(str(error) or "no answer in time")
        expected = isinstance(error, (NotSupported, ServiceUnavailable, asyncio.TimeoutError, TimeoutError))
        level = logging.DEBUG if quietly or run.said else logging.INFO if expected else logging.WARNING
        said = self._troubles.setdefault(site.name, [])
        if not run.said and not quietly:
            said.append(words)
        run.said = run.said or not quietly
        if level == logging.DEBUG or len(said) <= _SAID_AT_ONCE:
            run_logger().log(level, "%s: its log cannot be shown now. %s", run.handle.describe(), words)

    def _say_troubles(self) -> None:
        for site, said in self._troubles.items():
            if len(said) > _SAID_AT_ONCE:
                more = len(said) - _SAID_AT_ONCE
                run_logger().info("Nor can the logs of %d more training runs at %s.", more, site)
        self._troubles.clear()

    def _say_disk(self, error: Exception) -> None:
        words = getattr(error, "strerror", None) or str(error) or "it takes too long"
        if words not in self._disk_said:
            self._disk_said.add(words)
            run_logger().warning(
                "Logs of training runs are not kept in %s now: %s. The wait goes on.", self._directory, words
            )


async def _may_be_asked(site: Site, until: float) -> bool:
    """Wait as long as a site asks to be left alone; not beyond a moment."""
    seconds = site.quiet
    if monotonic() + seconds > until:
        return False
    if seconds:
        await asyncio.sleep(seconds)
    return True


def _account(site: Site) -> Hashable:
    return site.kind, site.account


def log_follower(*, directory: Path | None = None, publish: Publish | None = None, shows: bool = True) -> LogFollower:
    """Make what follows the logs of one wait.

    Args:
        directory: Where complete logs are kept. None: their ends are published instead, within a flow run.
        publish: What shows the end of a log to people.
        shows: Whether new lines are shown.
    """
    flow_run = str(runtime_flow_run.id) if runtime_flow_run.id else None
    return LogFollower(directory=directory, flow_run=flow_run, publish=publish if flow_run else None, shows=shows)
