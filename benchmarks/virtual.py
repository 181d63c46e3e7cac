"""Virtual time and a site without a server, for what would take hours."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx

from prefect_mantik.runs import RunHandle, RunState, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting import clock

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
_STEPS = 30


class VirtualTime:
    """The time of waits: it passes as soon as everybody sleeps and no request is under way.

    Args:
        passes: Awaited before time passes, with how many seconds will: to move a real server's past along.
    """

    def __init__(self, passes: Callable[[float], Awaitable[None]] | None = None) -> None:
        self.now = 0.0
        self._passes = passes
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._driver: asyncio.Task[None] | None = None
        self._requests, self._answered = 0, asyncio.Event()

    @contextlib.contextmanager
    def installed(self) -> Iterator[VirtualTime]:
        """Take the place of the waits' clock, and watch the requests of this process."""
        sleep, monotonic, send = clock.sleep, clock.monotonic, httpx.AsyncClient.send

        async def watched(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
            self._requests += 1
            try:
                return await send(client, request, **options)
            finally:
                self._requests -= 1
                self._answered.set()

        clock.sleep, clock.monotonic = self.sleep, lambda: self.now
        httpx.AsyncClient.send = watched  # type: ignore[method-assign, assignment]
        try:
            yield self
        finally:
            clock.sleep, clock.monotonic = sleep, monotonic
            httpx.AsyncClient.send = send  # type: ignore[method-assign]

    async def sleep(self, seconds: float) -> None:
        """Let virtual seconds pass."""
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + max(0.0, seconds), next(self._numbers), woken))
        if self._driver is None or self._driver.done():
            self._driver = asyncio.ensure_future(self._drive())
        await woken

    async def _drive(self) -> None:
        while self._sleepers:
            await self._until_idle()
            when, _, woken = heapq.heappop(self._sleepers)
            if woken.done():
                continue
            if self._passes and when > self.now:
                await self._passes(when - self.now)
            self.now = max(self.now, when)
            woken.set_result(None)

    async def _until_idle(self) -> None:
        idle = 0
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        while idle < _STEPS:
            if self._requests:
                self._answered.clear()
                await self._answered.wait()
                idle = 0
            await asyncio.sleep(0)
            idle += 1

    def time(self) -> datetime:
        """The time of day."""
        return START + timedelta(seconds=self.now)


class StubSite(Site):
    """A site of which each run ends after some seconds; it counts how often it was asked, and when for each run."""

    reference, name, settle = "mantik-site/stub", "stub", 1.0
    capabilities = frozenset()

    def __init__(
        self, time: VirtualTime, ends: Mapping[str, float], account: str = "one", one_call: bool = True
    ) -> None:
        self.time, self.ends, self._account = time, ends, account
        self.one_call = one_call  # type: ignore[misc]  # of a class elsewhere
        self.kind = "firecrest" if one_call else "unicore"  # type: ignore[misc]
        self.requests = 0
        self.asked: dict[str, int] = {}
        self.seen_ended: dict[str, float] = {}

    @property
    def account(self) -> str:
        """See `Site.account`."""
        return self._account

    async def ask(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        """See `Site.ask`."""
        self.requests += 1 if self.one_call else len(handles)
        return {handle: self._status(handle) for handle in handles}

    def _status(self, handle: RunHandle) -> RunStatus:
        ended = self.time.now >= self.ends[handle.remote_id]
        self.asked[handle.remote_id] = self.asked.get(handle.remote_id, 0) + 1
        if ended:
            self.seen_ended.setdefault(handle.remote_id, self.time.now)
        return RunStatus(
            state=RunState.FINISHED if ended else RunState.RUNNING,
            queued_at=START,
            started_at=START,
            ended_at=self.time.time() if ended else None,
            observed_at=self.time.time(),
        )

    async def post(self, *_: Any) -> str:
        """Nothing is submitted here."""
        raise NotImplementedError

    find = list = cancel = read_log = check = post  # type: ignore[assignment]


StubSite.__abstractmethods__ = frozenset()


def stub_handle(id: str, account: str = "one") -> RunHandle:
    """A run at a stub site."""
    return RunHandle(
        site=f"mantik-site/{account}", site_name=account, kind="mantik", remote_id=id, site_key=f"pm-{id}", name=id
    )


async def never(_: RunHandle) -> Site:
    """No site is opened anew."""
    raise NotImplementedError
