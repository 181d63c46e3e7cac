"""Among the processes of one Prefect server, one asks for all runs of an account, and tells the others.

A soft lease over Prefect's event stream, without rows of its own: who began first asks. The others say which runs they
want, and are told what changed. A holder that falls silent is replaced within 90 s: whoever hears nothing asks by
itself. So a word that gets lost costs requests, never a state.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import json
import random
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefect.events import Event

from prefect_mantik import event_stream
from prefect_mantik.log import run_logger
from prefect_mantik.runs import RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting import clock

WANTED, TOLD, LEFT = "polls.wanted", "polls.told", "polls.left"

HEARTBEAT = 40.0
"""Seconds between two words of who asks for others, at most."""

PATIENCE = 75.0
"""Seconds without a word after which one asks by oneself."""

AGAIN = 600.0
"""Seconds between two words of what one wants, at most."""

FORGOTTEN = 1500.0
"""Seconds after which nobody asks any more for who said nothing."""

GATHER = 1.0
"""Seconds in which words are gathered into one."""

MOST_RUNS = 5000
"""Runs that one process lets another ask for: an event holds a megabyte and a half."""

OpenSite = Callable[[RunHandle], Awaitable[Site]]
Tell = Callable[[RunStatus | Exception], None]
"""Takes what was told of a run; or why nothing ever will be."""

Rank = tuple[float, str]
"""When a process began to wait for an account, and its id: the lowest asks."""


class Host(Protocol):
    """The poller, as seen from here."""

    def wanted(self) -> list[RunHandle]:
        """The runs that somebody in this process waits for, and that other processes can find."""
        ...

    def told(self, statuses: Mapping[RunHandle, RunStatus]) -> None:
        """Take over what another process was told."""
        ...

    def postpone(self, handles: Iterable[RunHandle], seconds: float) -> None:
        """Ask for runs no sooner than this, if nothing is told meanwhile; at once for 0."""
        ...

    def join_guest(self, handle: RunHandle, site: Site, tell: Tell) -> None:
        """Ask for a run that another process waits for."""
        ...

    def leave(self, handle: RunHandle, tell: Tell) -> None:
        """Wait no more."""
        ...


@dataclass(eq=False)
class _Guest:
    """A process that we ask for."""

    said: float
    leaves: dict[RunHandle, Callable[[], None]] = field(default_factory=dict)
    cannot: list[str] = field(default_factory=list)
    number: int = 0


class Sharing:
    """The share of one process in the polls of one account.

    Args:
        account: As all processes know it.
        host: The poller.
        open_site: Opens the site of a run that another process wants.
    """

    def __init__(self, account: str, host: Host, open_site: OpenSite) -> None:
        self._resource = f"prefect-mantik.account.{hashlib.sha256(account.encode()).hexdigest()[:32]}"
        self._host, self._open_site = host, open_site
        self._rank: Rank = (time.time(), uuid.uuid4().hex)
        self._holder: Rank | None = None
        self._serial, self._heard = 0, 0
        self._guests: dict[str, _Guest] = {}
        self._known: dict[RunHandle, RunStatus] = {}
        self._news: dict[RunHandle, RunStatus] = {}
        self._cannot: frozenset[str] = frozenset()
        self._hurry, self._want = asyncio.Event(), True
        self._spoke = self._said = clock.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop_listening = event_stream.event_stream().listen(event_stream.OUR_EVENTS, self._hear)
        self._start(self._speak())

    @property
    def follows(self) -> bool:
        """Whether another process asks for our runs."""
        return self._holder is not None

    def covers(self, handle: RunHandle) -> bool:
        """Whether another process asks for a run."""
        return self.follows and handle.site is not None and handle.remote_id not in self._cannot

    def wants_change(self) -> None:
        """Other runs are wanted than before: who asks for us must hear of it."""
        if self.follows:
            self._say_soon()

    def _say_soon(self) -> None:
        self._want = True
        self._hurry.set()

    def asked_alone(self) -> None:
        """Nothing was told for so long that we asked: whoever asked for us is gone."""
        if self._holder is not None:
            run_logger().debug("Nothing was heard of who asks for %s: asking here.", self._resource)
            self._holder = None
            self._say_soon()

    def stop(self) -> None:
        """Wait for nothing more here: whoever we asked for asks by itself."""
        if self._guests or self.follows:
            self._say(LEFT, {})
        self._stop_listening()
        self._release_guests()
        for task in self._tasks:
            task.cancel()

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- Saying -----------------------------------------------------------------------------------------------------

    async def _speak(self) -> None:
        while True:
            self._hurry.clear()
            now = clock.monotonic()
            if self._want or now - self._said > AGAIN:
                self._say_wanted()
            if self._guests and (self._news or now - self._spoke >= HEARTBEAT):
                self._forget_guests()
                self._say_told()
            await clock.sleep_or(self._hurry, HEARTBEAT if self._guests else AGAIN)
            await clock.sleep(GATHER)

    def _say(self, name: str, more: Mapping[str, Any]) -> None:
        event_stream.event_stream().say(name, self._resource, {"from": list(self._rank), **more})

    def _say_wanted(self) -> None:
        self._want, self._said = False, clock.monotonic()
        runs = self._host.wanted()[:MOST_RUNS]
        self._say(WANTED, {"runs": _packed([run.model_dump(mode="json", exclude_defaults=True) for run in runs])})

    def _say_told(self) -> None:
        self._serial += 1
        self._spoke, news = clock.monotonic(), self._news
        self._news = {}
        wanted = {run for guest in self._guests.values() for run in guest.leaves}
        self._known = {run: status for run, status in (self._known | news).items() if run in wanted}
        told = [[*run.identity, status.model_dump(mode="json", exclude_defaults=True)] for run, status in news.items()]
        guests = {id: {"runs": guest.number, "cannot": guest.cannot} for id, guest in self._guests.items()}
        self._say(TOLD, {"serial": self._serial, "guests": guests, "statuses": _packed(told)})

    # --- Hearing ----------------------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        if event.resource.id != self._resource:
            return
        began, id = event.payload["from"]
        who: Rank = (float(began), str(id))
        if who == self._rank:
            return
        match event.event.removeprefix(event_stream.OUR_EVENTS):
            case "polls.wanted":
                if not self.follows and who > self._rank:
                    self._start(self._invite(who[1], _unpacked(event.payload["runs"])))
            case "polls.told":
                self._hear_told(who, event.payload)
            case "polls.left":
                self._hear_left(who)

    def _hear_told(self, who: Rank, payload: Mapping[str, Any]) -> None:
        if who > (self._holder or self._rank):
            if not self.follows:  # a younger one that asks for others has not heard of us
                self._hurry_to_tell()
            return
        mine = payload["guests"].get(self._rank[1])
        if self._holder != who:
            self._holder, self._heard = who, 0
            self._release_guests()
        if mine is None or mine["runs"] + len(mine["cannot"]) != len(self._host.wanted()):
            self.wants_change()
        if mine is None:
            return
        self._cannot = frozenset(mine["cannot"])
        missed = self._heard and payload["serial"] != self._heard + 1
        self._heard = payload["serial"]
        told = {(site, kind, id): status for site, kind, id, status in _unpacked(payload["statuses"])}
        wanted = [run for run in self._host.wanted() if self.covers(run)]
        self._host.told({run: RunStatus.model_validate(told[run.identity]) for run in wanted if run.identity in told})
        self._host.postpone(wanted, 0.0 if missed else PATIENCE * random.uniform(1.0, 1.15))  # noqa: S311  # jitter

    def _hear_left(self, who: Rank) -> None:
        if guest := self._guests.pop(who[1], None):
            for leave in guest.leaves.values():
                leave()
        if who == self._holder:
            self._holder = None
            self._host.postpone(self._host.wanted(), random.uniform(0.0, 2.0))  # noqa: S311  # who is first asks
            self._say_soon()

    # --- Asking for others ------------------------------------------------------------------------------------------

    async def _invite(self, id: str, runs: Iterable[Mapping[str, Any]]) -> None:
        guest = self._guests.setdefault(id, _Guest(clock.monotonic()))
        guest.said = clock.monotonic()
        wanted = {RunHandle.model_validate(run) for run in runs}
        guest.cannot, guest.number = [], len(wanted)
        for run in [run for run in guest.leaves if run not in wanted]:
            guest.leaves.pop(run)()
        sites: dict[str, Site | None] = {}
        for run in wanted:
            if run not in guest.leaves and (site := await self._opened(run, sites)):
                tell = functools.partial(self._take, run)
                self._host.join_guest(run, site, tell)
                guest.leaves[run] = functools.partial(self._host.leave, run, tell)
            elif run not in guest.leaves:
                guest.cannot.append(run.remote_id)
            elif run in self._known:
                self._news.setdefault(run, self._known[run])
        guest.number -= len(guest.cannot)
        self._hurry_to_tell()

    async def _opened(self, run: RunHandle, sites: dict[str, Site | None]) -> Site | None:
        if run.site is None:
            return None
        if run.site not in sites:
            try:
                sites[run.site] = await self._open_site(run)
            except Exception as error:  # noqa: BLE001  # who wants it asks by itself
                run_logger().debug("%s is not asked for here: %r", run.describe(), error)
                sites[run.site] = None
        return sites[run.site]

    def _take(self, run: RunHandle, status: RunStatus | Exception) -> None:
        """What we were told of a run that another process wants."""
        if isinstance(status, Exception):
            return
        before = self._news.get(run) or self._known.get(run)
        if before is None or _worth_a_word(before, status):
            self._news[run] = status
            self._hurry.set()
        elif before.life_at != status.life_at:
            self._news[run] = status  # with the next heartbeat
        if status.state.is_end:
            for guest in self._guests.values():
                guest.leaves.pop(run, None)

    def _hurry_to_tell(self) -> None:
        self._spoke = clock.monotonic() - HEARTBEAT
        self._hurry.set()

    def _forget_guests(self) -> None:
        late = [id for id, guest in self._guests.items() if clock.monotonic() - guest.said > FORGOTTEN]
        for id in late:
            for leave in self._guests.pop(id).leaves.values():
                leave()

    def _release_guests(self) -> None:
        for guest in self._guests.values():
            for leave in guest.leaves.values():
                leave()
        self._guests.clear()


def _worth_a_word(before: RunStatus, now: RunStatus) -> bool:
    if before.state is RunState.UNKNOWN and now.state is RunState.UNKNOWN:
        return before.reason is not now.reason
    same = ("state", "reason", "site_word", "message", "started_at", "ended_at", "exit_code")
    return any(getattr(before, name) != getattr(now, name) for name in same)


def _packed(document: Any) -> str:
    return base64.b85encode(zlib.compress(json.dumps(document).encode())).decode()


def _unpacked(text: str) -> Any:
    return json.loads(zlib.decompress(base64.b85decode(text)))
