"""Wait until runs ended: what pollers tell, what sites help, who looks on."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence

from prefect_mantik.errors import SiteSilent, WaitTimeout
from prefect_mantik.log import run_logger
from prefect_mantik.runs import RunHandle, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting import clock, watching
from prefect_mantik.waiting.observing import Observed, Observer
from prefect_mantik.waiting.poller import poller_of
from prefect_mantik.waiting.tending import Tended, tend
from prefect_mantik.waiting.watching import Watched

ONE_ROUND = 5.0
"""Seconds that a wait takes at least: long enough to ask once."""

REOPEN = 60.0
"""Seconds between two looks whether the credentials of a refused login have changed."""

LOOK = 15.0
"""Seconds between two looks of who looks on, where nothing is told."""

CLOSE = 30.0
"""Seconds that who looks on may take when the wait is over."""

Reopen = Callable[[RunHandle], Awaitable[Site]]
"""Opens the site of a run anew, with the credentials that are saved now."""


async def wait_until_ended(
    sites: Mapping[RunHandle, Site],
    *,
    reopen: Reopen,
    timeout: float | None = None,
    observers: Sequence[Observer] = (),
) -> dict[RunHandle, RunStatus]:
    """Wait until every run ended, and return their last statuses. Changes of state are logged, and nothing else.

    Args:
        sites: The site of each run.
        reopen: What gives a site anew after its login was refused.
        timeout: Seconds after which to stop waiting. None: no limit.
        observers: Who looks on.

    Raises:
        WaitTimeout: The time passed first.
        SiteSilent: Runs gave no sign of life for as long as their site allows; all others ended.
    """
    wait = _Wait([Watched(handle, site) for handle, site in sites.items()], reopen)
    looks = [asyncio.ensure_future(_look_on(wait, observer)) for observer in observers]
    try:
        # A short time is long enough to ask once: what has ended is no time-out.
        await asyncio.wait_for(wait.until_ended(), timeout if timeout is None else max(timeout, ONE_ROUND))
    except (asyncio.TimeoutError, TimeoutError):
        left = [run.handle for run in wait.runs if not run.ended]
        if left:  # else all ended, and only their books were being closed
            listed = ", ".join(handle.describe() for handle in left)
            when = f"after {timeout:.0f} s" if timeout else "when the timeout passed"
            raise WaitTimeout(
                f"{len(left)} of {len(wait.runs)} training runs had not ended {when}: {listed}.", left
            ) from None
    finally:
        wait.leave()
        for look in looks:
            look.cancel()
        if observers:
            await asyncio.gather(*(_close(wait, observer) for observer in observers))
    silent = [run for run in wait.runs if run.given_up]
    if silent:
        raise SiteSilent(
            "\n".join(watching.silence(run, "The wait stops here, the job was left alone") for run in silent),
            [run.handle for run in silent],
        )
    return {run.handle: run.status for run in wait.runs if run.status}


class _Wait:
    """The runs of one wait. All that is said of them is said in the context of who waits."""

    def __init__(self, runs: Sequence[Watched], reopen: Reopen) -> None:
        self.runs = runs
        self._reopen = reopen
        self._told: list[tuple[Tended, RunStatus]] = []
        self._mistake: Exception | None = None
        self._news = asyncio.Event()
        self.changed: list[asyncio.Event] = []
        self._tended = [Tended(run) for run in runs]
        self._leave: dict[RunHandle, Callable[[], None]] = {}
        self._reopened = self._heeded = clock.monotonic()

    async def until_ended(self) -> None:
        """Take what is told until all runs ended and their books are closed, or cannot be."""
        for one in self._tended:
            self._join(one)
        helping: asyncio.Future[None] | None = None
        try:
            while not all(one.done for one in self._tended):
                self._news.clear()
                self._take()
                await self._open_anew()
                if helping is not None and helping.done():
                    helping.result()
                    helping = None
                if helping is None and any(one.is_due and not one.done for one in self._tended):
                    helping = asyncio.ensure_future(tend(self._tended))
                    helping.add_done_callback(lambda _: self._news.set())
                elif not self._told:
                    await clock.sleep_or(self._news, self._until_due() if helping is None else LOOK)
        finally:
            if helping is not None:
                helping.cancel()

    def leave(self) -> None:
        """Wait no more."""
        for leave in self._leave.values():
            leave()

    def _join(self, one: Tended) -> None:
        poller, run = poller_of(one.run.site), one.run
        tell = functools.partial(self._tell, one)
        poller.join(run.handle, run.site, tell, self._reopen)
        self._leave[run.handle] = functools.partial(poller.leave, run.handle, tell)

    def _tell(self, one: Tended, status: RunStatus | Exception) -> None:
        if isinstance(status, Exception):
            self._mistake = status
        else:
            self._told.append((one, status))
        self._news.set()

    def _take(self) -> None:
        if self._mistake:
            raise self._mistake
        told, self._told = self._told, []
        watching.take([(one.run, status) for one, status in told], self.runs)
        for one, status in told:
            one.news = one.run.status if one.run.unknown_since is None else status
        self._heed_silence([one.run for one, _ in told])
        if told:
            for changed in self.changed:
                changed.set()

    def _heed_silence(self, told: Sequence[Watched]) -> None:
        """Of what another process asks for only changes are told: so all runs are looked at now and then."""
        if clock.monotonic() - self._heeded >= LOOK:
            told, self._heeded = self.runs, clock.monotonic()
        watching.heed_silence(told)
        for run in told:
            if run.given_up:
                self._leave[run.handle]()

    def _until_due(self) -> float:
        dues = [one.due for one in self._tended if one.due is not None and not one.done]
        if any(one.run.paused for one in self._tended):
            dues.append(self._reopened + REOPEN)
        return max(0.0, min([due - clock.monotonic() for due in dues], default=REOPEN))

    async def _open_anew(self) -> None:
        """A refused login is not tried again; a changed block is another account, and asks anew."""
        paused = [one for one in self._tended if one.run.paused]
        if not paused or clock.monotonic() - self._reopened < REOPEN:
            return
        self._reopened = clock.monotonic()
        by_site: dict[Hashable, list[Tended]] = {}
        for one in paused:
            by_site.setdefault((one.run.handle.site or one.run.handle, id(one.run.site)), []).append(one)
        for theirs in by_site.values():
            await self._open_site(theirs)

    async def _open_site(self, theirs: Sequence[Tended]) -> None:
        first = theirs[0].run
        try:
            site = await self._reopen(first.handle)
        except Exception as error:  # noqa: BLE001  # a block that is being mended, a Prefect that restarts: no end
            if str(error) != first.trouble:
                first.trouble = str(error)
                run_logger().warning("%s: its site cannot be opened now. %s", first.handle.describe(), error)
            return
        for one in theirs:
            self._leave[one.run.handle]()
            one.run.site = site
            self._join(one)


async def _look_on(wait: _Wait, observer: Observer) -> None:
    said, changed = "", asyncio.Event()
    wait.changed.append(changed)
    while True:
        changed.clear()
        try:
            await observer.look(_observed(wait))
        except Exception as error:  # noqa: BLE001  # who looks on must not end a wait of days
            if repr(error) != said:
                said = repr(error)
                run_logger().warning("%s: %s", type(observer).__name__, error or type(error).__name__)
        await clock.sleep_or(changed, LOOK)


async def _close(wait: _Wait, observer: Observer) -> None:
    try:
        await asyncio.wait_for(observer.close(_observed(wait)), CLOSE)
    except Exception as error:  # noqa: BLE001  # as above
        run_logger().warning("%s: %s", type(observer).__name__, str(error) or type(error).__name__)


def _observed(wait: _Wait) -> dict[RunHandle, Observed]:
    return {run.handle: Observed(run.site, run.status) for run in wait.runs}
