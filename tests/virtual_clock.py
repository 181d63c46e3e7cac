"""Virtual time for waits: it passes when nothing else is left to do."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import datetime, timedelta, timezone

import pytest

from prefect_mantik.waiting import clock

START = datetime(2026, 1, 1, tzinfo=timezone.utc)

_STEPS = 40
"""Turns of the loop after which nothing else is left to do, where nothing waits for the world outside."""


class VirtualClock:
    """Who sleeps is woken in order, as soon as everybody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._driver: asyncio.Task[None] | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
        """Take the place of the waits' own."""
        monkeypatch.setattr(clock, "sleep", self.sleep)
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        return self

    async def sleep(self, seconds: float) -> None:
        """Let virtual seconds pass."""
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), woken))
        if self._driver is None or self._driver.done():
            self._driver = asyncio.ensure_future(self._drive())
        await woken

    async def _drive(self) -> None:
        while self._sleepers:
            for _ in range(_STEPS):
                await asyncio.sleep(0)
            when, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                self.now = max(self.now, when)
                woken.set_result(None)

    def time(self) -> datetime:
        """The time of day."""
        return START + timedelta(seconds=self.now)
