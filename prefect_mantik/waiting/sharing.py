"""Among the processes of one Prefect server, one asks for all runs of an account, and tells the others.

A soft lease over Prefect's event stream, without rows of its own: who began first asks. The others say which runs they
want, and are told what changed. Who asks for others says which of their words it heard last, so that a run counts as
asked for only when that is certain. A holder that falls silent is replaced within 90 s: whoever hears nothing asks by
itself. So a word that gets lost costs requests, never a state.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import random
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect.events import Event

from prefect_mantik import event_stream
from prefect_mantik.log import run_logger
from prefect_mantik.loop import start_apart
from prefect_mantik.runs import RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting import clock
from prefect_mantik.waiting.host import Host, OpenSite
from prefect_mantik.waiting.words import (
    LEFT,
    TOLD,
    WANTED,
    Answer,
    Rank,
    Told,
    Wanted,
    said_by,
    speaker,
    worth_a_word,
)

HEARTBEAT = 54.0
"""Seconds between two words of who asks for others, at most."""

PATIENCE = 75.0
"""Seconds without a word after which one asks by oneself."""

SOON, AGAIN = 20.0, 600.0
"""Seconds between two words of what one wants: at first while nobody answers, and at most."""

REPLY = 10.0
"""Seconds in which a word of what one wants is answered, if it was heard."""

HANDED_ON = 5.0
"""Seconds in which who asks next is found when who asked says that it leaves."""

FORGOTTEN = 1500.0
"""Seconds after which nobody asks any more for who said nothing."""

GATHER = 1.0
"""Seconds in which words are gathered into one."""

SPARE, REFILL = 15.0, 240.0
"""Words that may be said before the next heartbeat, and seconds until there is one more of them: each word is a row in
Prefect's database."""

MOST_RUNS = 5000
"""Runs that one process lets another ask for: an event holds a megabyte and a half."""


@dataclass(eq=False)
class _Guest:
    """A process that we ask for.

    Attributes:
        said: When it said something last.
        number: Which of its words was taken over last.
        latest: Which was heard last.
        leaves: What ends asking for each of its runs.
        cannot: Its runs whose sites cannot be opened here.
    """

    said: float
    number: int = 0
    latest: int = 0
    leaves: dict[RunHandle, Callable[[], None]] = field(default_factory=dict)
    cannot: frozenset[RunHandle] = frozenset()

    def go(self) -> None:
        for leave in self.leaves.values():
            leave()
        self.leaves.clear()


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
        self._gone: set[str] = set()
        # As one who lets another ask.
        self._holder: Rank | None = None
        self._heard, self._heard_at, self._number = 0, clock.monotonic(), 0
        self._asked: frozenset[RunHandle] = frozenset()
        self._covered: frozenset[RunHandle] = frozenset()
        self._said, self._pause, self._want = clock.monotonic(), SOON, True
        # As one who asks for others.
        self._guests: dict[str, _Guest] = {}
        self._known: dict[RunHandle, RunStatus] = {}
        self._news: dict[RunHandle, RunStatus] = {}
        self._spoke, self._serial, self._answer = clock.monotonic(), 0, False

        self._hurry, self._turn = asyncio.Event(), asyncio.Lock()
        self._spare, self._counted = SPARE, clock.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop_listening = event_stream.event_stream().listen(event_stream.OUR_EVENTS, self._hear)
        self._start(self._speak())

    @property
    def follows(self) -> bool:
        """Whether another process asks for our runs."""
        return self._holder is not None

    def covers(self, handle: RunHandle) -> bool:
        """Whether another process asks for a run, and said so."""
        return self.follows and handle in self._covered

    def wants_change(self) -> None:
        """Other runs are wanted than before: who asks for us must hear of it."""
        if self.follows:
            self._say_soon()

    def pause(self, handle: RunHandle, regular: float) -> float:
        """Seconds until a run is to be asked here, where they would be `regular` ones if nobody else asked."""
        if not self.covers(handle):
            return regular
        return max(regular, PATIENCE * random.uniform(1.02, 1.15))  # noqa: S311  # jitter

    def stop(self) -> None:
        """Wait for nothing more here: whoever we asked for asks by itself."""
        if self._guests or self.follows:
            self._say(LEFT, {})
        self._stop_listening()
        self._release_guests()
        for task in self._tasks:
            task.cancel()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = start_apart(_unless_it_fails(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _follow(self, holder: Rank | None) -> None:
        self._holder, self._heard, self._covered = holder, 0, frozenset()
        self._release_guests()
        self._pause = AGAIN if self.follows else SOON

    # --- Saying -----------------------------------------------------------------------------------------------------

    def _say_soon(self) -> None:
        self._want = True
        self._hurry.set()

    def _answer_soon(self) -> None:
        self._answer = True
        self._hurry.set()

    async def _speak(self) -> None:
        while True:
            self._hurry.clear()
            self._leave_who_is_silent()
            now = clock.monotonic()
            self._spare = min(SPARE, self._spare + (now - self._counted) / REFILL)
            self._counted = now
            if now >= self._next_wanted() or (self._want and self._may_hurry()):
                self._say_wanted()
            if now >= self._next_told() or ((self._answer or self._news_at_once()) and self._may_hurry()):
                self._say_told()
            soonest = min(self._next_wanted(), self._next_told(), self._silent_at())
            await clock.sleep_or(self._hurry, max(GATHER, soonest - clock.monotonic()))
            await clock.sleep(GATHER)

    def _leave_who_is_silent(self) -> None:
        """Who asks for others is gone: also one that died before us, of whom the stream still told us."""
        if clock.monotonic() >= self._silent_at():
            run_logger().debug("Nothing was heard of who asks for %s: asking here.", self._resource)
            self._follow(None)
            self._want = True

    def _silent_at(self) -> float:
        return self._heard_at + PATIENCE if self.follows else float("inf")

    def _next_wanted(self) -> float:
        """Who asks for others is heard anyway."""
        return float("inf") if self._guests else self._said + self._pause

    def _next_told(self) -> float:
        return self._spoke + HEARTBEAT if self._guests else float("inf")

    def _may_hurry(self) -> bool:
        if self._spare < 1:
            return False
        self._spare -= 1
        return True

    def _news_at_once(self) -> bool:
        return any(
            run not in self._known or worth_a_word(self._known[run], status) for run, status in self._news.items()
        )

    def _say(self, name: str, payload: Mapping[str, Any]) -> None:
        event_stream.event_stream().say(name, self._resource, said_by(self._rank, payload))

    def _say_wanted(self) -> None:
        self._want, self._said = False, clock.monotonic()
        self._pause = AGAIN if self.follows else min(2 * self._pause, AGAIN)
        self._number += 1
        self._asked = frozenset(self._host.wanted()[:MOST_RUNS])
        self._say(WANTED, Wanted(self._number, self._asked).payload())

    def _say_told(self) -> None:
        self._forget_guests()
        self._serial += 1
        self._spoke, self._answer = clock.monotonic(), False
        news, self._news = self._news, {}
        self._known |= news
        answers = {id: Answer(guest.number, self._cannot(guest)) for id, guest in self._guests.items()}
        told = {run.identity: status for run, status in news.items()}
        self._say(TOLD, Told(self._serial, answers, told).payload())
        wanted = {run for guest in self._guests.values() for run in guest.leaves}
        self._known = {run: status for run, status in self._known.items() if run in wanted}

    def _cannot(self, guest: _Guest) -> frozenset[tuple[str, str, str]]:
        """Whoever is not answered here must not keep others from asking, by what may be another way or password."""
        away = {run for run in guest.leaves if run in self._known and self._known[run].state is RunState.UNKNOWN}
        return frozenset(run.identity for run in guest.cannot | away)

    # --- Hearing ----------------------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        if event.resource.id != self._resource:
            return
        who = speaker(event.payload)
        if who == self._rank or who[1] in self._gone:
            return
        match event.event.removeprefix(event_stream.OUR_EVENTS):
            case "polls.wanted":
                self._hear_wanted(who, Wanted.of(event.payload))
            case "polls.told":
                self._hear_told(who, Told.of(event.payload))
            case "polls.left":
                self._hear_left(who)

    def _hear_wanted(self, who: Rank, wanted: Wanted) -> None:
        if self.follows:
            return
        if who > self._rank:
            guest = self._guests.setdefault(who[1], _Guest(clock.monotonic()))
            guest.said = clock.monotonic()
            if wanted.number > guest.latest:
                guest.latest = wanted.number
                self._start(self._invite(who[1], guest, wanted))
        elif clock.monotonic() - self._said > REPLY:
            self._say_soon()  # it began before us, and may not have heard of us

    def _hear_told(self, who: Rank, told: Told) -> None:
        if who > (self._holder or self._rank):
            if not self.follows:  # a younger one that asks for others has not heard of us
                self._answer_soon()
            return
        is_new = self._holder != who
        if is_new:
            self._follow(who)
        if told.number <= self._heard:
            return  # heard twice
        heard_all = told.number == self._heard + 1
        self._heard, self._heard_at = told.number, clock.monotonic()
        if not self._is_answered(told.answers.get(self._rank[1])) and (is_new or self._heard_at - self._said > REPLY):
            self._say_soon()
        covered = [run for run in self._host.wanted() if run in self._covered]
        news = {run: told.statuses[run.identity] for run in covered if run.identity in told.statuses}
        # Of a holder that is heard for the first time the word before may have answered us, and been lost.
        sure = covered if heard_all else [*news] if is_new else []
        self._host.told(news)
        self._host.unchanged(run for run in sure if run not in news)
        self._host.postpone(sure, PATIENCE * random.uniform(1.02, 1.15))  # noqa: S311  # jitter
        self._host.postpone((run for run in covered if run not in sure), 0.0)

    def _is_answered(self, answer: Answer | None) -> bool:
        if answer is None:
            self._covered = frozenset()
        elif answer.number == self._number:
            self._covered = frozenset(run for run in self._asked if run.identity not in answer.cannot)
            return self._asked.issuperset(self._host.wanted()[:MOST_RUNS])
        return False

    def _hear_left(self, who: Rank) -> None:
        self._gone.add(who[1])
        if guest := self._guests.pop(who[1], None):
            guest.go()
        if who == self._holder:
            self._follow(None)
            self._say_soon()
            # By then the others have heard who is first; who asks next asks for all.
            self._host.postpone(self._host.wanted(), HANDED_ON * random.uniform(0.8, 1.2))  # noqa: S311

    # --- Asking for others ------------------------------------------------------------------------------------------

    async def _invite(self, id: str, guest: _Guest, wanted: Wanted) -> None:
        async with self._turn:
            is_new = guest.leaves.keys() | guest.cannot != wanted.runs
            for run in [run for run in guest.leaves if run not in wanted.runs]:
                guest.leaves.pop(run)()
            sites: dict[str, Site | None] = {}
            cannot = {run for run in wanted.runs if not await self._joined(id, guest, run, sites)}
            if self._guests.get(id) is guest and wanted.number == guest.latest:
                guest.number, guest.cannot = wanted.number, frozenset(cannot)
                if is_new:  # else the next heartbeat will do
                    self._answer_soon()

    async def _joined(self, id: str, guest: _Guest, run: RunHandle, sites: dict[str, Site | None]) -> bool:
        if run not in guest.leaves:
            site = await self._opened(run, sites)
            tell = functools.partial(self._take, run)
            if self._guests.get(id) is not guest or site is None or not self._host.join_guest(run, site, tell):
                return False
            guest.leaves[run] = functools.partial(self._host.leave, run, tell)
        if run in self._known:
            self._news.setdefault(run, self._known[run])
        return True

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
        if before is None or worth_a_word(before, status):
            self._news[run] = status
            self._hurry.set()
        elif before.life_at != status.life_at:
            self._news[run] = status  # with the next heartbeat
        else:
            (self._news if run in self._news else self._known)[run] = status  # the same, as told now
        if status.state.is_end:
            for guest in self._guests.values():
                guest.leaves.pop(run, None)

    def _forget_guests(self) -> None:
        late = [id for id, guest in self._guests.items() if clock.monotonic() - guest.said > FORGOTTEN]
        for id in late:
            self._guests.pop(id).go()

    def _release_guests(self) -> None:
        for guest in self._guests.values():
            guest.go()
        self._guests.clear()
        self._known.clear()
        self._news.clear()


async def _unless_it_fails(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception as error:  # noqa: BLE001  # a mistake of ours: without the others, each process asks by itself
        run_logger().debug("Polls are not shared any more: %r", error)
