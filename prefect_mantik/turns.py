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
from dataclasses import dataclass, field

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError, concurrency
from prefect.exceptions import ObjectAlreadyExists

from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process, start_apart

LIMITS = 64
"""Keys that share a limit wait for each other: enough of them that this is rare."""

LEASE = 60.0
"""Seconds, Prefect's minimum, after which the slot of a killed holder comes back."""

PATIENCE = 10.0
"""Seconds to wait for a slot, and for Prefect to take it back."""


def limit_name(site_key: str) -> str:
    """The limit that a key shares with some others."""
    return f"prefect-mantik-submit-{zlib.crc32(site_key.encode()) % LIMITS:02d}"


@dataclass(eq=False)
class _Slot:
    """A slot that this process holds, or asks for, as long as keys that share its limit are submitted here.

    Attributes:
        name: Of its limit.
        taken: Set when it is held.
        done: Set when nobody here needs it any more.
        users: How many submits do.
    """

    name: str
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    users: int = 0

    def __post_init__(self) -> None:
        # A task of its own: Prefect's slot must be given back by the task that took it.
        self.holder = start_apart(_hold(self.name, self.taken, self.done))


@per_process
def _slots() -> dict[str, _Slot]:
    return {}


@per_process
def _asking() -> asyncio.Lock:
    """Limits are asked for one after another: Prefect's SQLite answers 503 to many at once, and to all who write."""
    return asyncio.Lock()


@per_process
def _own_turn(site_key: str) -> asyncio.Lock:
    return asyncio.Lock()


@contextlib.asynccontextmanager
async def turn(site_key: str) -> AsyncIterator[None]:
    """Hold a slot of the key's limit, or go on without after `PATIENCE` seconds. Never raises by itself.

    Within a process the submitters of one key go one after another, and keys that share a limit share its slot.

    Args:
        site_key: Whose.
    """
    name = limit_name(site_key)
    async with _own_turn(site_key):
        slot = _slots().get(name) or _slots().setdefault(name, _Slot(name))
        slot.users += 1
        waiting = asyncio.create_task(slot.taken.wait())
        try:
            await asyncio.wait({slot.holder, waiting}, timeout=2 * PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            if not slot.taken.is_set():
                _say_without(name, slot.holder)
            yield
        finally:
            waiting.cancel()
            slot.users -= 1
            if not slot.users:
                del _slots()[name]
                await _give_back(slot)


async def _give_back(slot: _Slot) -> None:
    slot.done.set()
    if not slot.taken.is_set():
        slot.holder.cancel()
    await asyncio.wait({slot.holder}, timeout=PATIENCE)
    if slot.holder.done() and not slot.holder.cancelled() and slot.holder.exception() and slot.taken.is_set():
        run_logger().info("Prefect did not take back a slot of the limit %s: %s", slot.name, slot.holder.exception())


async def _hold(name: str, taken: asyncio.Event, done: asyncio.Event) -> None:
    for known in (False, True):
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with _asking():
                    # A lease that cannot be renewed must not cancel a POST that is under way.
                    slot = concurrency(
                        name,
                        timeout_seconds=PATIENCE,
                        lease_duration=LEASE,
                        strict=True,
                        raise_on_lease_renewal_failure=False,
                    )
                    await stack.enter_async_context(slot)
                taken.set()
                await done.wait()
                return
        except ConcurrencySlotAcquisitionError:
            if known:
                raise
            async with _asking(), get_client() as client:
                with contextlib.suppress(ObjectAlreadyExists):
                    await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))


def _say_without(name: str, holder: asyncio.Task[None]) -> None:
    error = holder.exception() if holder.done() and not holder.cancelled() else None
    held = error is None or isinstance(error, asyncio.TimeoutError | TimeoutError)
    why = "it is held by another submit, or was never given back" if held else f"{type(error).__name__}: {error}"
    run_logger().info("Submitting without a slot of the limit %s (%s).", name, why)
