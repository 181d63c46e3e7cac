"""The time of waits. Tests, and what is simulated, put another in its place."""

from __future__ import annotations

import asyncio
from time import monotonic as _monotonic


def monotonic() -> float:
    """Seconds by a clock that nobody sets."""
    return _monotonic()


async def sleep(seconds: float) -> None:
    """Let seconds pass."""
    await asyncio.sleep(seconds)


async def sleep_or(event: asyncio.Event, seconds: float) -> None:
    """Let seconds pass, or fewer if something happens."""
    waits = {asyncio.ensure_future(sleep(max(0.0, seconds))), asyncio.ensure_future(event.wait())}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
