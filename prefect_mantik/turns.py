"""Submitters of one key under one Prefect server take turns, as far as Prefect can arrange it.

A turn is a slot of one of a few global concurrency limits, chosen by the key. It makes two submitters that start at the
same instant rare; it is advice and never a gate. Prefect may be too slow, away, or never give a slot back (its holder
was killed and the server restarted): then we go on without, since only the site can tell what exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError, concurrency
from prefect.exceptions import ObjectAlreadyExists

from prefect_mantik.log import run_logger

LIMITS = 64
"""Keys that share a limit wait for each other: enough of them that this is rare."""

LEASE = 60.0
"""Seconds, Prefect's minimum, after which the slot of a killed holder comes back."""

PATIENCE = 10.0
"""Seconds to wait for a slot, and for Prefect to take it back."""


def limit_name(site_key: str) -> str:
    """The limit that a key shares with some others."""
    return f"prefect-mantik-submit-{zlib.crc32(site_key.encode()) % LIMITS:02d}"


@contextlib.asynccontextmanager
async def turn(site_key: str) -> AsyncIterator[None]:
    """Hold a slot of the key's limit, or go on without after `PATIENCE` seconds. Never raises by itself.

    Args:
        site_key: Whose.
    """
    name = limit_name(site_key)
    taken, done = asyncio.Event(), asyncio.Event()
    # A task of its own: Prefect's slot must be given back by the task that took it.
    holder = asyncio.create_task(_hold(name, taken, done))
    waiting = asyncio.create_task(taken.wait())
    try:
        await asyncio.wait({holder, waiting}, timeout=2 * PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if not taken.is_set():
            _say_without(name, holder)
        yield
    finally:
        done.set()
        waiting.cancel()
        if not taken.is_set():
            holder.cancel()
        await asyncio.wait({holder}, timeout=PATIENCE)
        if holder.done() and not holder.cancelled() and holder.exception() and taken.is_set():
            run_logger().info("Prefect did not take back a slot of the limit %s: %s", name, holder.exception())


async def _hold(name: str, taken: asyncio.Event, done: asyncio.Event) -> None:
    for known in (False, True):
        try:
            # A lease that cannot be renewed must not cancel a POST that is under way.
            async with concurrency(
                name, timeout_seconds=PATIENCE, lease_duration=LEASE, strict=True, raise_on_lease_renewal_failure=False
            ):
                taken.set()
                await done.wait()
                return
        except ConcurrencySlotAcquisitionError:
            if known:
                raise
            async with get_client() as client:
                with contextlib.suppress(ObjectAlreadyExists):
                    await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))


def _say_without(name: str, holder: asyncio.Task[None]) -> None:
    error = holder.exception() if holder.done() and not holder.cancelled() else None
    held = error is None or isinstance(error, asyncio.TimeoutError | TimeoutError)
    why = "it is held by another submit, or was never given back" if held else f"{type(error).__name__}: {error}"
    run_logger().info("Submitting without a slot of the limit %s (%s).", name, why)
