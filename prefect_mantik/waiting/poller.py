"""One poller for each account of a process: it asks for all runs that anybody waits for, here or in other processes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prefect_mantik import event_stream
from prefect_mantik.errors import ConfigurationError, RequestFailed, ServiceUnavailable
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site, not_asked
from prefect_mantik.waiting import clock, interval
from prefect_mantik.waiting.interval import Bounds
from prefect_mantik.waiting.settings import settings
from prefect_mantik.waiting.sharing import OpenSite, Sharing, Tell

AT_ONCE = 32
"""Runs of which each is a call are asked in parts: a site that is down is not asked a thousand times to say so."""


@dataclass(eq=False)
class Seat:
    """One run that somebody here waits for.

    Attributes:
        handle: Which run.
        site: Its site, as it was opened last.
        tells: Who waits for it here.
        guests: Who waits for it in other processes.
        status: What was told last, but for what could not be asked.
        seen: When its state was first seen.
        asked: When it was asked last.
        due: When it is to be asked again.
    """

    handle: RunHandle
    site: Site
    tells: list[Tell] = field(default_factory=list)
    guests: list[Tell] = field(default_factory=list)
    status: RunStatus | None = None
    seen: float = field(default_factory=clock.monotonic)
    asked: float | None = None
    due: float = 0.0

    def take(self, status: RunStatus) -> None:
        """Hand a status on to who waits for it."""
        if status.state is not RunState.UNKNOWN:
            if self.status is None or self.status.state is not status.state:
                self.seen = clock.monotonic()
            status = self.status = with_observed_start(self.status, status)
        for tell in (*self.tells, *self.guests):
            tell(status)


class Poller:
    """Asks for the runs of one account until nobody waits for any. Use `poller_of`.

    Args:
        key: What it is known by in this process.
    """

    def __init__(self, key: Hashable) -> None:
        self._key = key
        self._sharing: Sharing | None = None
        self._seats: dict[RunHandle, Seat] = {}
        self._news = asyncio.Event()
        self._failures, self._not_before = 0, 0.0
        self._task: asyncio.Task[None] | None = None

    def join(self, handle: RunHandle, site: Site, tell: Tell, open_site: OpenSite | None = None) -> None:
        """Wait for a run: `tell` is called with each status, also one that has not changed, until the run ended.

        Args:
            handle: Which run.
            site: Its site.
            tell: Takes what is told of it.
            open_site: Opens the sites of runs that other processes want; None: this process asks for itself alone.
        """
        seat = self._sit(handle, site)
        seat.tells.append(tell)
        if seat.status and seat.due > clock.monotonic():
            tell(seat.status)
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())
            account = site.shared_account
            if open_site and account and settings().share_polls and event_stream.is_there():
                self._sharing = Sharing(account, self, open_site)
        if self._sharing:
            self._sharing.wants_change()

    def join_guest(self, handle: RunHandle, site: Site, tell: Tell) -> None:
        """Ask for a run that another process waits for, as long as somebody waits here too."""
        self._sit(handle, site).guests.append(tell)

    def _sit(self, handle: RunHandle, site: Site) -> Seat:
        seat = self._seats.setdefault(handle, Seat(handle, site))
        seat.site = site
        if seat.asked is None or clock.monotonic() - seat.asked > bounds_of(site).shortest:
            seat.due = clock.monotonic()
        self._news.set()
        return seat

    def leave(self, handle: RunHandle, tell: Tell) -> None:
        """Wait no more."""
        seat = self._seats.get(handle)
        if seat is None:
            return
        for waiting in (seat.tells, seat.guests):
            if tell in waiting:
                waiting.remove(tell)
        if not seat.tells and not seat.guests:
            del self._seats[handle]
        self._news.set()
        if self._sharing:
            self._sharing.wants_change()

    # --- What `Sharing` asks of its host -----------------------------------------------------------------------------

    def wanted(self) -> list[RunHandle]:
        """See `sharing.Host`."""
        return [seat.handle for seat in self._seats.values() if seat.tells and seat.handle.site]

    def told(self, statuses: Mapping[RunHandle, RunStatus]) -> None:
        """See `sharing.Host`."""
        seats = [seat for handle, seat in self._seats.items() if handle in statuses]
        self._take(seats, statuses)

    def postpone(self, handles: Iterable[RunHandle], seconds: float) -> None:
        """See `sharing.Host`."""
        for handle in handles:
            if seat := self._seats.get(handle):
                seat.due = clock.monotonic() + seconds
        self._news.set()

    async def _run(self) -> None:
        try:
            while any(seat.tells for seat in self._seats.values()):
                self._news.clear()
                due = self._due()
                if due:
                    await self._round(due)
                else:
                    soonest = min(seat.due for seat in self._seats.values())
                    await clock.sleep_or(self._news, max(soonest, self._not_before) - clock.monotonic())
        except Exception as error:  # noqa: BLE001  # a mistake of ours: who waits must hear of it, not hang
            for seat in self._seats.values():
                for tell in tuple(seat.tells):
                    tell(error)
        finally:
            _pollers().pop(self._key, None)
            if self._sharing:
                self._sharing.stop()

    def _due(self) -> list[Seat]:
        """Who is to be asked now; where one call asks for all, all as soon as it is one's turn."""
        now = clock.monotonic()
        if now < self._not_before:
            return []
        seats = list(self._seats.values())
        due = [seat for seat in seats if seat.due <= now]
        if self._sharing and any(self._sharing.covers(seat.handle) for seat in due):
            self._sharing.asked_alone()
        return seats if due and due[0].site.one_call else due

    async def _round(self, due: Sequence[Seat]) -> None:
        part = len(due) if due[0].site.one_call else AT_ONCE
        for start in range(0, len(due), part):
            seats = [seat for seat in due[start : start + part] if self._seats.get(seat.handle) is seat]
            if not seats:
                continue
            statuses = await self._refined(seats, await self._asked(seats))
            failed = all(status.state is RunState.UNKNOWN for status in statuses.values())
            if failed:
                rest = dict.fromkeys((seat.handle for seat in due[start + part :]), next(iter(statuses.values())))
                self._take([*seats, *due[start + part :]], {**rest, **statuses})
                self._back_off(seats[0].site)
                return
            self._failures = 0
            self._take(seats, statuses)

    def _take(self, seats: Sequence[Seat], statuses: Mapping[RunHandle, RunStatus]) -> None:
        now = clock.monotonic()
        for seat in seats:
            seat.asked = now
            seat.take(statuses[seat.handle])
            regular = interval.pause(seat.status, now - seat.seen, bounds_of(seat.site))
            seat.due = now + regular * random.uniform(0.9, 1.1)  # noqa: S311  # jitter
            if seat.status and seat.status.state.is_end and statuses[seat.handle].state.is_end:
                self._seats.pop(seat.handle, None)

    def _back_off(self, site: Site) -> None:
        """Nobody could be asked: the account is left alone, longer each time."""
        seconds = interval.after_failures(self._failures, bounds_of(site)) * random.uniform(0.9, 1.1)  # noqa: S311
        self._failures += 1
        self._not_before = max(self._not_before, clock.monotonic() + seconds)

    async def _asked(self, seats: Sequence[Seat]) -> dict[RunHandle, RunStatus]:
        handles = [seat.handle for seat in seats]
        try:
            found = await seats[0].site.ask(handles)
        except (RequestFailed, ConfigurationError) as error:
            if isinstance(error, ServiceUnavailable) and error.retry_after:
                self._not_before = clock.monotonic() + error.retry_after
            return dict.fromkeys(handles, not_asked(error))
        except Exception as error:  # noqa: BLE001  # one answer that nobody thought of must not hide all others
            if len(seats) == 1:
                return {handles[0]: not_read(handles[0], error)}
            middle = len(seats) // 2
            return {**await self._asked(seats[:middle]), **await self._asked(seats[middle:])}
        return {handle: found.get(handle) or not_read(handle, LookupError("no word of it")) for handle in handles}

    async def _refined(self, seats: Sequence[Seat], statuses: dict[RunHandle, RunStatus]) -> dict[RunHandle, RunStatus]:
        """Let each site say what it knows better of its own runs."""
        sites: dict[Hashable, list[Seat]] = {}
        for seat in seats:
            sites.setdefault(seat.handle.site or id(seat.site), []).append(seat)
        for theirs in sites.values():
            told = {seat.handle: statuses[seat.handle] for seat in theirs}
            try:
                statuses |= await theirs[-1].site.refine(told)
            except Exception as error:  # noqa: BLE001  # what the account said is still true
                run_logger().warning(
                    "%s: only what its account tells is known (%s).", theirs[-1].site.name, type(error).__name__
                )
        return statuses


@per_process
def _pollers() -> dict[Hashable, Poller]:
    return {}


def poller_of(site: Site) -> Poller:
    """The poller of a site's account, started when the first run joins."""
    key = (site.kind, site.account)
    return _pollers().setdefault(key, Poller(key))


def bounds_of(site: Site) -> Bounds:
    """How often the runs of a site may be asked: as its block says, else as the settings do."""
    told = settings()
    shortest = site.pace.shortest or told.poll_shortest
    longest = site.pace.longest or max(told.poll_longest, shortest)
    return Bounds(shortest, longest, max(told.poll_queued, longest) if not site.pace.longest else longest)


def not_read(handle: RunHandle, error: Exception) -> RunStatus:
    """The status of a run whose answer cannot be read: unknown, and said, since it may be a mistake of ours."""
    words = f"What its site answers of {handle.describe()} cannot be read ({type(error).__name__})."
    return not_asked(ServiceUnavailable(words)).model_copy(update={"reason": Reason.UNREADABLE})


def with_observed_start(before: RunStatus | None, status: RunStatus) -> RunStatus:
    """Fill in when the job began, from when we first saw it run, where the site does not tell."""
    if status.started_at is not None:
        return status
    if before is not None and before.started_at is not None:
        return status.model_copy(update={"started_at": before.started_at})
    if before is not None and before.state is RunState.SCHEDULED and status.state is RunState.RUNNING:
        return status.model_copy(update={"started_at": status.observed_at})
    return status
