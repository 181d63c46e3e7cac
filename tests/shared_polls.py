"""Processes that share the polls of an account, in one event loop: only the transport of their words is replaced."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

import pytest
from prefect.events import Event, Resource

from prefect_mantik import event_stream
from prefect_mantik.runs import RunHandle
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting import clock as waits_clock, sharing
from prefect_mantik.waiting.poller import Poller
from prefect_mantik.waiting.sharing import Sharing
from tests.polled_site import Answer, PolledSite, Waiter, run
from tests.virtual_clock import VirtualClock

LATENCY = 0.3

_PROCESS: ContextVar[Process] = ContextVar("process")


class Hub:
    """A Prefect server's event stream: all hear all, later and not for certain.

    Attributes:
        words: What was said, and when.
        lost: The share of words that do not reach one who listens.
        cut: Whether nothing is heard at all.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.processes: list[Process] = []
        self.words: list[tuple[float, Event]] = []
        self.lost, self.cut = 0.0, False
        self._random = random.Random(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def say(self, event: Event) -> None:
        self.words.append((self.clock.now, event))
        for process in self.processes:
            if not self.cut and self._random.random() >= self.lost:
                self.deliver(process, event)

    def deliver(self, process: Process, event: Event, after: float = LATENCY) -> None:
        task = asyncio.ensure_future(self._deliver(process, event, after))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, process: Process, event: Event, after: float) -> None:
        await self.clock.sleep(after)
        await process.runs.wait()
        process.hear(Event.model_validate(json.loads(event.model_dump_json())))

    def words_an_hour(self) -> int:
        """The most words of any hour."""
        times = [at for at, _ in self.words]
        return max(sum(at <= other < at + 3600 for other in times) for at in times)


class Process:
    """One process: its poller, its opened site, and its end of the stream."""

    def __init__(self, hub: Hub, answer: Answer, **attributes: Any) -> None:
        self.hub, self.alive = hub, True
        self.errors: list[Exception] = []
        """What was not understood, which `EventStream` lets pass."""
        self.runs = asyncio.Event()
        self.runs.set()
        given = {"account": f"client {len(hub.processes)}", "_shared": "user at birch", **attributes}
        self.site = PolledSite(hub.clock, answer, **given)
        self.opens: Callable[[RunHandle], Site] = lambda _: self.site
        self.poller = Poller((self.site.kind, self.site.account))
        self._listener: Callable[[Event], None] | None = None
        self._context = contextvars.copy_context()
        self._context.run(_PROCESS.set, self)
        hub.processes.append(self)

    # What stands for `EventStream`.

    def listen(self, _: str, listener: Callable[[Event], None]) -> Callable[[], None]:
        self._listener = listener

        def stop() -> None:
            self._listener = None

        return stop

    def say(self, name: str, resource: str, payload: dict[str, Any]) -> None:
        if self.alive:
            named = Resource.model_validate({"prefect.resource.id": resource})
            self.hub.say(Event(event=f"{event_stream.OUR_EVENTS}{name}", resource=named, payload=payload))

    def hear(self, event: Event) -> None:
        if self.alive and self._listener:
            try:
                self._context.run(self._listener, event)
            except Exception as error:  # noqa: BLE001
                self.errors.append(error)

    # What a test does to it.

    def wait_for(self, *handles: RunHandle) -> Waiter:
        """Begin to wait for runs."""
        waiter = Waiter()
        for handle in handles:
            self._context.run(self.poller.join, handle, self.site, waiter.tell, self._open)
        return waiter

    async def _open(self, handle: RunHandle) -> Site:
        await asyncio.sleep(0)
        return self.opens(handle)

    @property
    def sharing(self) -> Sharing:
        assert self.poller._sharing is not None
        return self.poller._sharing

    def kill(self) -> None:
        """SIGKILL: nobody hears of it."""
        self.alive = False
        if self.poller._task:
            self.poller._task.cancel()

    def stop(self) -> None:
        """SIGSTOP."""
        self.runs.clear()

    def go_on(self) -> None:
        """SIGCONT."""
        self.runs.set()

    def asked(self, number: int | str, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """When it asked for a run."""
        return [at for at, runs in self.site.asked if str(number) in runs and since <= at < until]


def install(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Virtual time, and a stream without a server."""
    clock = VirtualClock().install(monkeypatch)
    times = itertools.count(1000)

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        if process := _PROCESS.get(None):
            await process.runs.wait()

    monkeypatch.setattr(waits_clock, "sleep", sleep)
    monkeypatch.setattr(event_stream, "is_there", lambda: True)
    monkeypatch.setattr(event_stream, "event_stream", _PROCESS.get)
    monkeypatch.setattr(sharing.time, "time", lambda: float(next(times)))
    random.seed(1)
    return Hub(clock)


async def a_hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    """A fixture: what was begun there ends with the test."""
    hub = install(monkeypatch)
    yield hub
    for process in hub.processes:
        process.go_on()
        process.kill()
    await asyncio.sleep(0.01)


def asked_by_all(hub: Hub, number: int = 0, since: float = 0.0, until: float = float("inf")) -> list[float]:
    """When anybody asked for a run."""
    return sorted(at for process in hub.processes for at in process.asked(number, since, until))


__all__ = ["LATENCY", "Hub", "Process", "a_hub", "asked_by_all", "install", "run"]
