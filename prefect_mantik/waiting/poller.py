"""One poller for each account of a process: it asks for all runs that anybody waits for, here or in other processes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Hashable, Iterable, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from prefect_mantik import event_stream
from prefect_mantik.errors import ConfigurationError, RequestFailed, ServiceUnavailable
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process, start_apart
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site, not_asked
from prefect_mantik.waiting import clock, interval
from prefect_mantik.waiting.host import OpenSite, Tell
from prefect_mantik.waiting.interval import Bounds
from prefect_mantik.waiting.settings import settings
from prefect_mantik.waiting.sharing import Sharing

T = TypeVar("T")

AT_ONCE = 32
"""Runs of which each is a call are asked in parts: a site that is down is not asked a thousand times to say so."""

EARLY = 0.05
"""Of its pause: by so much a run is asked earlier together with others, so that a thousand runs are few rounds."""

MOST_TRIES = 40
"""Calls of one round that look for the one answer that cannot be read."""

LONGEST_QUIET = 3600.0
"""Seconds for which a server is left alone that asks for it, at most: a date in ten years must not end a wait."""


@dataclass(eq=False)
class Seat:
    """One run that somebody here waits for.

    Attributes:
        handle: Which run.
        site: Its site, as it was opened last.
        tells: Who waits for it here, and in whose name to log what is said of it meanwhile.
        guests: Who waits for it in other processes.
        status: What was told last, but for what could not be asked.
        seen: When its state was first seen.
        asked: When it was asked last.
        due: When it is to be asked again.
        pause: Seconds from when that was said until then.
    """

    handle: RunHandle
    site: Site
    tells: dict[Tell, Context] = field(default_factory=dict)
    guests: list[Tell] = field(default_factory=list)
    status: RunStatus | None = None
    seen: float = field(default_factory=clock.monotonic)
    asked: float | None = None
    due: float = 0.0
    pause: float = 0.0

    def still(self, status: RunStatus) -> RunStatus:
        """The status that was told last, as told now: by the clock that told it."""
        passed = clock.monotonic() - (clock.monotonic() if self.asked is None else self.asked)
        return status.model_copy(update={"observed_at": status.observed_at + timedelta(seconds=passed)})

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
        self._said: set[Hashable] = set()
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
        seat.tells[tell] = copy_context()
        if seat.status and seat.due > clock.monotonic():
            tell(seat.status)
        if self._task is None or self._task.done():
            self._task = start_apart(self._run())
            account = site.shared_account
            if open_site and account and settings().share_polls and event_stream.is_there():
                self._sharing = Sharing(account, self, open_site)
        if self._sharing:
            self._sharing.wants_change()

    def join_guest(self, handle: RunHandle, site: Site, tell: Tell) -> bool:
        """See `Host`. It is asked as long as somebody waits here too."""
        if _key_of(site) != self._key:
            return False
        seat = self._sit(handle, site)
        seat.guests.append(tell)
        if seat.asked is None:  # its own process has just asked, and others may join as well
            seat.due = max(seat.due, clock.monotonic() + bounds_of(site).shortest)
        return True

    def _sit(self, handle: RunHandle, site: Site) -> Seat:
        seat = self._seats.setdefault(handle, Seat(handle, site))
        seat.site = site
        covered = self._sharing is not None and self._sharing.covers(handle)
        if seat.asked is None or (not covered and clock.monotonic() - seat.asked > bounds_of(site).shortest):
            seat.due = clock.monotonic()
        self._news.set()
        return seat

    def leave(self, handle: RunHandle, tell: Tell) -> None:
        """Wait no more."""
        seat = self._seats.get(handle)
        if seat is None:
            return
        seat.tells.pop(tell, None)
        if tell in seat.guests:
            seat.guests.remove(tell)
        if not seat.tells and not seat.guests:
            del self._seats[handle]
        self._news.set()
        if self._sharing:
            self._sharing.wants_change()

    # --- What `Sharing` asks: see `Host` ------------------------------------------------------------------------------

    def wanted(self) -> list[RunHandle]:
        """See `Host`."""
        return [seat.handle for seat in self._seats.values() if seat.tells and seat.handle.site]

    def told(self, statuses: Mapping[RunHandle, RunStatus]) -> None:
        """See `Host`."""
        seats = [seat for handle, seat in self._seats.items() if handle in statuses]
        self._take(seats, statuses)

    def unchanged(self, handles: Iterable[RunHandle]) -> None:
        """See `Host`."""
        seats = [seat for handle in handles if (seat := self._seats.get(handle))]
        known = {seat.handle: seat.still(seat.status) for seat in seats if seat.status}
        self._take([seat for seat in seats if seat.handle in known], known)

    def postpone(self, handles: Iterable[RunHandle], seconds: float) -> None:
        """See `Host`."""
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
                    await _in_the_name_of(due, self._round(due))
                else:
                    soonest = min(seat.due for seat in self._seats.values())
                    await clock.sleep_or(self._news, max(soonest, self._not_before) - clock.monotonic())
        except Exception as error:  # noqa: BLE001  # a mistake of ours: who waits must hear of it, not hang
            for seat in self._seats.values():
                for tell in tuple(seat.tells):
                    tell(error)
        finally:
            if _pollers().get(self._key) is self:
                del _pollers()[self._key]
            if self._sharing:
                self._sharing.stop()
                self._sharing = None

    def _due(self) -> list[Seat]:
        """Who is to be asked now, and soon; where one call asks for all, all as soon as it is one's turn."""
        now = clock.monotonic()
        if now < self._not_before:
            return []
        seats = list(self._seats.values())
        due = [seat for seat in seats if seat.due <= now]
        if not due or due[0].site.one_call:
            return seats if due else []
        return [seat for seat in seats if seat.due - EARLY * seat.pause <= now]

    async def _round(self, due: Sequence[Seat]) -> None:
        due = sorted(due, key=lambda seat: seat.asked or 0.0)  # so that none stays the last one of many
        part = len(due) if due[0].site.one_call else AT_ONCE
        for start in range(0, len(due), part):
            seats = [seat for seat in due[start : start + part] if self._seats.get(seat.handle) is seat]
            if not seats:
                continue
            statuses = await self._refined(seats, await self._asked(seats))
            self._heed_quiet(seats[0].site.quiet)
            self._take(seats, statuses)
            if all(_is_away(status) for status in statuses.values()):
                word = next(iter(statuses.values()))
                self._take(due[start + part :], {seat.handle: word for seat in due[start + part :]}, asked=False)
                self._back_off(seats[0].site)
                return
            self._failures = 0
            if clock.monotonic() < self._not_before:
                return  # it asks for rest: the others are due as before

    def _take(self, seats: Sequence[Seat], statuses: Mapping[RunHandle, RunStatus], asked: bool = True) -> None:
        now = clock.monotonic()
        for seat in seats:
            if asked:
                seat.asked = now
            seat.take(statuses[seat.handle])
            regular = interval.jittered(seat.status, now - seat.seen, bounds_of(seat.site))
            seat.pause = self._sharing.pause(seat.handle, regular) if self._sharing else regular
            seat.due = now + seat.pause
            if statuses[seat.handle].state.is_end and self._seats.get(seat.handle) is seat:
                del self._seats[seat.handle]

    def _back_off(self, site: Site) -> None:
        """Nobody could be asked: the account is left alone, longer each time."""
        seconds = interval.after_failures(self._failures, bounds_of(site)) * random.uniform(0.9, 1.1)  # noqa: S311
        self._failures += 1
        self._heed_quiet(seconds)

    def _heed_quiet(self, seconds: float) -> None:
        self._not_before = max(self._not_before, clock.monotonic() + min(seconds, LONGEST_QUIET))

    async def _asked(self, seats: Sequence[Seat]) -> dict[RunHandle, RunStatus]:
        """What the site says. One answer that nobody thought of must not hide all others: it is looked for."""
        statuses: dict[RunHandle, RunStatus] = {}
        parts, tries = [[seat.handle for seat in seats]], 0
        while parts:
            part, tries = parts.pop(), tries + 1
            try:
                found = await seats[0].site.ask(part)
            except (RequestFailed, ConfigurationError) as error:
                if isinstance(error, ServiceUnavailable) and error.retry_after:
                    self._heed_quiet(error.retry_after)
                statuses |= dict.fromkeys(part, not_asked(error))
            except Exception as error:  # noqa: BLE001  # a mistake of ours, or of a site
                if len(part) == 1 or tries >= MOST_TRIES:
                    statuses |= {handle: not_read(handle, error) for handle in part}
                else:
                    parts += [part[: len(part) // 2], part[len(part) // 2 :]]
            else:
                missing = LookupError("no word of it")
                statuses |= {handle: found.get(handle) or not_read(handle, missing) for handle in part}
        return statuses

    async def _refined(self, seats: Sequence[Seat], statuses: dict[RunHandle, RunStatus]) -> dict[RunHandle, RunStatus]:
        """Let each site say what it knows better of its own runs."""
        sites: dict[Hashable, list[Seat]] = {}
        for seat in seats:
            sites.setdefault(seat.handle.site or id(seat.site), []).append(seat)
        for of, theirs in sites.items():
            told = {seat.handle: statuses[seat.handle] for seat in theirs}
            try:
                statuses |= await _in_the_name_of(theirs, theirs[-1].site.refine(told))
                self._said.discard(of)
            except Exception as error:  # noqa: BLE001  # what the account said is still true
                if of not in self._said:
                    self._said.add(of)
                    name, what = theirs[-1].site.name, type(error).__name__
                    run_logger().warning("%s: only what its account tells is known (%s).", name, what)
        return statuses


@per_process
def _pollers() -> dict[Hashable, Poller]:
    return {}


def poller_of(site: Site) -> Poller:
    """The poller of a site's account, started when the first run joins."""
    key = _key_of(site)
    return _pollers().setdefault(key, Poller(key))


def _key_of(site: Site) -> Hashable:
    return site.kind, site.account


async def _in_the_name_of(seats: Sequence[Seat], work: Coroutine[Any, Any, T]) -> T:
    """Log lines of some work belong to a flow run that waits for one of these runs, not to whoever came first."""
    contexts = (context for seat in seats for context in seat.tells.values())
    if (context := next(contexts, None)) is None:
        return await work
    return await start_apart(work, context)


def bounds_of(site: Site) -> Bounds:
    """How often the runs of a site may be asked: as its block says, else as the settings do."""
    told = settings()
    shortest = site.pace.shortest or max(told.poll_shortest, site.looks_every)
    longest = max(site.pace.longest or told.poll_longest, shortest)
    return Bounds(shortest, longest, max(told.poll_queued, longest) if not site.pace.longest else longest)


def _is_away(status: RunStatus) -> bool:
    return status.state is RunState.UNKNOWN and status.reason not in (Reason.UNREADABLE, Reason.UNTOLD)


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
