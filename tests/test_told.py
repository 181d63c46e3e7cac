"""What a word of who asks for others means for the runs of who hears it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from prefect.events import Event, Resource

from prefect_mantik import event_stream
from prefect_mantik.runs import RunHandle, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting.sharing import PATIENCE, Sharing
from prefect_mantik.waiting.words import TOLD, Answer, Told, Wanted, said_by
from tests.polled_site import run, state
from tests.shared_polls import Hub, Process, a_hub

hub = pytest.fixture(a_hub)
OLDEST = (1.0, "oldest")
NOTHING: frozenset[Any] = frozenset()


class Books:
    """Keeps what sharing says of two runs, in place of a poller."""

    def __init__(self) -> None:
        self.said: dict[str, list[str]] = {"0": [], "1": []}

    def wanted(self) -> list[RunHandle]:
        return [run(0), run(1)]

    def told(self, statuses: Mapping[RunHandle, RunStatus]) -> None:
        for handle, status in statuses.items():
            self.said[handle.remote_id].append(status.state.value)

    def unchanged(self, handles: Iterable[RunHandle]) -> None:
        for handle in handles:
            self.said[handle.remote_id].append("unchanged")

    def postpone(self, handles: Iterable[RunHandle], seconds: float) -> None:
        assert seconds == 0 or PATIENCE < seconds < 1.2 * PATIENCE
        for handle in handles:
            self.said[handle.remote_id].append("later" if seconds else "ask now")

    def join_guest(self, *_: object) -> bool:
        raise AssertionError

    def leave(self, *_: object) -> None:
        raise AssertionError


async def no_site(_: RunHandle) -> Site:
    raise AssertionError


class Listener:
    """A process that lets the oldest one ask for its two runs, and hears its words."""

    def __init__(self, hub: Hub) -> None:
        self.hub, self.books = hub, Books()
        self.process = Process(hub, lambda *_: state("RUNNING", 0))
        self.sharing = self.process._context.run(Sharing, "user at birch", self.books, no_site)

    async def hears(self, number: int, *changed: int, cannot: frozenset[Any] = NOTHING) -> dict[str, list[str]]:
        """What becomes of each run when a word tells that some have finished."""
        self.books.said = {"0": [], "1": []}
        wanted = [event for _, event in self.hub.words if event.event.endswith("wanted")][-1]
        answers = {self.sharing._rank[1]: Answer(Wanted.of(wanted.payload).number, cannot)}
        told = Told(number, answers, {run(each).identity: state("FINISHED", self.hub.clock.now) for each in changed})
        resource = Resource.model_validate({"prefect.resource.id": self.sharing._resource})
        payload = said_by(OLDEST, told.payload())
        event = Event(event=f"{event_stream.OUR_EVENTS}{TOLD}", resource=resource, payload=payload)
        self.hub.deliver(self.process, event, after=0)
        await self.hub.clock.sleep(0.1)
        assert self.process.errors == []
        return self.books.said


async def test_a_first_word_is_sure_only_of_what_it_tells(hub: Hub) -> None:
    """The word before may have told the other one's end, and been lost."""
    listener = Listener(hub)
    await hub.clock.sleep(2)
    assert await listener.hears(7, 0) == {"0": ["FINISHED", "later"], "1": ["ask now"]}


async def test_the_next_word_is_sure_of_all(hub: Hub) -> None:
    listener = Listener(hub)
    await hub.clock.sleep(2)
    await listener.hears(7)
    assert await listener.hears(8, 1) == {"0": ["unchanged", "later"], "1": ["FINISHED", "later"]}


async def test_after_a_word_that_was_lost_all_are_asked_once(hub: Hub) -> None:
    listener = Listener(hub)
    await hub.clock.sleep(2)
    await listener.hears(7)
    assert await listener.hears(9, 1) == {"0": ["ask now"], "1": ["FINISHED", "ask now"]}


async def test_what_cannot_be_asked_there_goes_on_as_before(hub: Hub) -> None:
    listener = Listener(hub)
    await hub.clock.sleep(2)
    await listener.hears(7)
    assert await listener.hears(8, 1, cannot=frozenset({run(0).identity})) == {"0": [], "1": ["FINISHED", "later"]}


async def test_a_word_that_is_heard_again_says_nothing(hub: Hub) -> None:
    listener = Listener(hub)
    await hub.clock.sleep(2)
    await listener.hears(7)
    assert await listener.hears(7, 0, 1) == {"0": [], "1": []}
