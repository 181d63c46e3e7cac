"""Prefect's event stream: one websocket for each process, and what is said over it to other processes.

It is a help and no need: words get lost, proxies let no websocket through, a server restarts. Whoever listens does
without it, by asking now and then.
"""

from __future__ import annotations

import asyncio
import random
from asyncio import sleep
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any

from prefect.events import Event, Resource
from prefect.events.clients import get_events_client, get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.settings import PREFECT_API_URL

from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process, start_apart

OUR_EVENTS = "prefect-mantik."
CANCELS = "prefect.flow-run.Cancel"
"""How the events begin by which flow runs become Cancelling and Cancelled."""

LONGEST_PAUSE = 300.0
"""Seconds between two tries to connect, at most."""

LINGER = 2.0
"""Seconds in which a last word is said after nobody listens any more."""

MOST_WORDS = 100
"""Words that wait to be said; more are lost."""

SUBSCRIBED = 2.0
"""Seconds after which a server that took the connection surely tells everything."""

FRESH = 30.0
"""Seconds for which a word waits to be said: later it would tell of what is no more."""

Listener = Callable[[Event], None]


class EventStream:
    """What is heard of the Prefect server's events, as long as somebody listens. Use `event_stream`."""

    def __init__(self) -> None:
        self._listeners: dict[object, tuple[str, Listener]] = {}
        self._anew: dict[object, Callable[[], None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._words: asyncio.Queue[tuple[float, Event]] = asyncio.Queue(MOST_WORDS)
        self._hears = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether the server can be heard now."""
        return self._hears.is_set()

    def listen(self, prefix: str, listener: Listener, anew: Callable[[], None] = lambda: None) -> Callable[[], None]:
        """Call a listener with each event whose name has a prefix (ours, or cancels); the result ends that.

        Args:
            prefix: Of the names of events.
            listener: Is called with each.
            anew: Is called whenever nothing is missed from now on: what happened before may have been.
        """
        ticket = object()
        self._listeners[ticket] = prefix, listener
        self._anew[ticket] = anew
        if self.connected:
            asyncio.get_running_loop().call_soon(anew)
        if self._task is None or self._task.done():
            self._task = start_apart(self._stay_connected(self._hear, self._speak))

        def stop() -> None:
            self._listeners.pop(ticket, None)
            self._anew.pop(ticket, None)
            asyncio.get_running_loop().call_later(LINGER, self._end_if_nobody_listens)

        return stop

    def _end_if_nobody_listens(self) -> None:
        if not self._listeners and self._task:
            self._task.cancel()
            self._task = None

    def say(self, name: str, resource: str, payload: Mapping[str, Any]) -> None:
        """Say something to whoever listens, while somebody listens here. It may get lost."""
        event = Event(
            event=f"{OUR_EVENTS}{name}",
            resource=Resource.model_validate({"prefect.resource.id": resource}),
            payload=dict(payload),
        )
        if not self._words.full():
            self._words.put_nowait((monotonic(), event))

    async def _stay_connected(self, *directions: Callable[[], Awaitable[None]]) -> None:
        await asyncio.gather(*(self._again_and_again(direction) for direction in directions))

    async def _again_and_again(self, direction: Callable[[], Awaitable[None]]) -> None:
        pause = 1.0
        while True:
            began = monotonic()
            try:
                await direction()
            except Exception as error:  # noqa: BLE001  # whatever a server or a proxy does: we do without
                run_logger().debug("Prefect's event stream broke off: %r", error)
            pause = 1.0 if monotonic() - began > LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
            await sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311  # jitter

    async def _speak(self) -> None:
        await self._hears.wait()  # Prefect's client would warn of each word that it cannot say
        word = await self._fresh_word()
        async with get_events_client(reconnection_attempts=1) as client:
            while True:
                await client.emit(word)
                word = await self._fresh_word()

    async def _fresh_word(self) -> Event:
        while True:
            since, event = await self._words.get()
            if monotonic() - since < FRESH:
                return event

    async def _hear(self) -> None:
        names = EventFilter(event=EventNameFilter(prefix=[OUR_EVENTS, CANCELS]))
        async with get_events_subscriber(filter=names, reconnection_attempts=0) as events:
            self._hears.set()
            asyncio.get_running_loop().call_later(SUBSCRIBED, self._say_anew)
            try:
                async for event in events:
                    for prefix, listener in tuple(self._listeners.values()):
                        if event.event.startswith(prefix):
                            self._hand_on(event, listener)
            finally:
                self._hears.clear()

    def _say_anew(self) -> None:
        for anew in tuple(self._anew.values()):
            anew()

    def _hand_on(self, event: Event, listener: Listener) -> None:
        try:
            listener(event)
        except Exception as error:  # noqa: BLE001  # a word that nobody understands must not end the stream
            run_logger().debug("Event %s was not understood: %r", event.event, error)


@per_process
def event_stream() -> EventStream:
    """The process's event stream."""
    return EventStream()


def is_there() -> bool:
    """Whether there is a server whose stream others hear too: one that was started for this process alone has none."""
    return bool(PREFECT_API_URL.value())
