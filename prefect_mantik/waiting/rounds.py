"""Runs that are asked for without anybody being told: those of suspended flow runs, and those that may have ended."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from prefect_mantik.errors import MantikError
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.sites.opening import site_of
from prefect_mantik.waiting import clock
from prefect_mantik.waiting.poller import poller_of

PATIENCE = 45.0
"""Seconds until what could not be asked by then counts as unknown: one account that is away holds up no other."""


@dataclass
class Round:
    """What was told of runs.

    Attributes:
        statuses: Of each run; UNKNOWN of one that could not be asked.
        sites: Those that could be opened.
        troubles: Why a run could not be asked.
    """

    statuses: dict[RunHandle, RunStatus] = field(default_factory=dict)
    sites: dict[RunHandle, Site] = field(default_factory=dict)
    troubles: dict[RunHandle, str] = field(default_factory=dict)

    def all_ended(self, handles: Iterable[RunHandle]) -> bool:
        """Whether some runs have all ended."""
        return all(self.statuses[handle].state.is_end for handle in handles)

    def fail(self, handles: Iterable[RunHandle], error: BaseException) -> None:
        """These could not be asked: one account that is away says nothing of the others."""
        words = str(error) if isinstance(error, MantikError) and str(error) else f"{type(error).__name__}: {error}"
        unknown = RunStatus(state=RunState.UNKNOWN, site_word=words, observed_at=datetime.now(timezone.utc))
        for handle in handles:
            self.statuses[handle], self.troubles[handle] = unknown, words


@dataclass(eq=False)
class _Attended:
    site: Site
    leave: Callable[[], None] = lambda: None
    told: RunStatus | Exception | None = None


class Attendance:
    """Runs that pollers ask for, as often as their age deserves, until nobody attends to them any more."""

    def __init__(self) -> None:
        self._runs: dict[RunHandle, _Attended] = {}
        self._news = asyncio.Event()

    async def attend(self, handles: Sequence[RunHandle]) -> Round:
        """What is known of runs, each asked at least once. Never raises for what one site, or one block, does."""
        for gone in [run for run in self._runs if run not in set(handles)]:
            self._runs.pop(gone).leave()
        found = Round()
        await self._open([handle for handle in handles if handle not in self._runs], found)
        await self._all_told()
        for handle, run in list(self._runs.items()):
            found.sites[handle] = run.site
            self._read(handle, run, found)
        return found

    def leave(self) -> None:
        """Attend to nothing any more."""
        for run in self._runs.values():
            run.leave()
        self._runs.clear()

    def _read(self, handle: RunHandle, run: _Attended, found: Round) -> None:
        if isinstance(run.told, RunStatus):
            found.statuses[handle] = run.told
            if run.told.state is RunState.UNKNOWN:
                found.troubles[handle] = run.told.site_word
            if run.told.reason is not Reason.PAUSED:
                return  # the poller goes on, as seldom as that site wishes
        else:
            found.fail([handle], run.told or TimeoutError(f"no answer in {PATIENCE:.0f} s"))
        self._runs.pop(handle).leave()  # the next round opens its site with what is saved then

    async def _all_told(self) -> None:
        until = clock.monotonic() + PATIENCE
        while any(run.told is None for run in self._runs.values()) and clock.monotonic() < until:
            self._news.clear()
            await clock.sleep_or(self._news, until - clock.monotonic())

    async def _open(self, handles: Iterable[RunHandle], found: Round) -> None:
        by_site: dict[str | RunHandle, list[RunHandle]] = {}
        for handle in dict.fromkeys(handles):
            by_site.setdefault(handle.site or handle, []).append(handle)
        for theirs in by_site.values():
            try:
                site = await site_of(theirs[0])
            except Exception as error:  # noqa: BLE001  # a block that was deleted or damaged, a Prefect that is away
                found.fail(theirs, error)
                continue
            for handle in theirs:
                self._join(handle, site)

    def _join(self, handle: RunHandle, site: Site) -> None:
        run = self._runs[handle] = _Attended(site)
        poller, tell = poller_of(site), functools.partial(self._take, run)
        run.leave = functools.partial(poller.leave, handle, tell)
        poller.join(handle, site, tell, site_of)

    def _take(self, run: _Attended, told: RunStatus | Exception) -> None:
        run.told = told
        self._news.set()


async def ask(handles: Sequence[RunHandle]) -> Round:
    """Ask each run once. See `Attendance.attend`."""
    attendance = Attendance()
    try:
        return await attendance.attend(handles)
    finally:
        attendance.leave()
