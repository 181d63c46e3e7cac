"""Ending process groups without blocking the event loop."""

from __future__ import annotations

import asyncio
import signal
import time

from prefect_mantik.sandbox.watchdog import group_exists, kill_group

_TICK = 0.02


async def end_group(group: int, grace: float) -> None:
    """End a process group: ask, wait, kill, and wait until it is gone.

    Args:
        group: The id of the process group.
        grace: Seconds to wait before it is killed; 0 kills it at once.
    """
    if grace > 0 and kill_group(group, signal.SIGTERM):
        await _gone(group, grace)
    kill_group(group)
    await _gone(group, 1)


async def _gone(group: int, within: float) -> None:
    deadline = time.monotonic() + within
    alive = group_exists(group)
    while alive and time.monotonic() < deadline:
        await asyncio.sleep(_TICK)
        alive = group_exists(group)
