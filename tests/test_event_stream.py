"""What is said over Prefect's event stream while it is not there."""

from __future__ import annotations

import asyncio
from types import TracebackType

import pytest
from prefect.events import Event

from prefect_mantik import event_stream
from prefect_mantik.event_stream import EventStream


class Client:
    """Prefect's, as far as it is used."""

    def __init__(self, said: list[Event]) -> None:
        self.emit_to = said

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def emit(self, event: Event) -> None:
        self.emit_to.append(event)


async def test_nothing_is_said_before_something_is_heard_and_nothing_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's client would warn of each word that it cannot say."""
    said: list[Event] = []
    connects = asyncio.Event()
    now = 0.0

    async def hear(self: EventStream) -> None:
        await connects.wait()
        self._hears.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(EventStream, "_hear", hear)
    monkeypatch.setattr(event_stream, "get_events_client", lambda **_: Client(said))
    monkeypatch.setattr(event_stream, "monotonic", lambda: now)
    stream = EventStream()
    stop = stream.listen(event_stream.OUR_EVENTS, lambda _: None)
    stream.say("polls.old", "us", {})
    await asyncio.sleep(0.01)
    assert (said, stream.connected) == ([], False)
    now = event_stream.FRESH + 1
    stream.say("polls.new", "us", {})
    connects.set()
    await asyncio.sleep(0.05)
    assert [event.event for event in said] == ["prefect-mantik.polls.new"]
    stop()
    stream._end_if_nobody_listens()
