"""A wait notices that its own flow run was cancelled, and ends the training runs.

Prefect's worker ends the process of a flow run that is cancelled, and calls its hooks. Nobody does that for a flow that
was started by hand, and a process whose waits sit in threads is only killed after half a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from asyncio import sleep
from collections.abc import Coroutine, Sequence
from time import monotonic
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.events import Event
from prefect.exceptions import Abort
from prefect.runtime import flow_run as runtime_flow_run
from prefect.states import Cancelled

from prefect_mantik import cancelling
from prefect_mantik.event_stream import CANCELS, EventStream, event_stream
from prefect_mantik.ledger import root_flow_run_id
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.runs import RunHandle
from prefect_mantik.sites.opening import site_of

T = TypeVar("T")

NOTICE = 30.0
"""Seconds between two looks at the state of the own flow run, where Prefect's event stream is not heard."""

NOTICE_BESIDE = 1200.0
"""Seconds between two looks beside the event stream, which may lose an event."""

KILLED_WITHIN = 90.0
"""Seconds that a wait gives the worker to end this process, after it ended the runs."""

_SHOWN = 5

INTERRUPTED = 20.0
"""Seconds for ending the runs when the process is being ended: Prefect kills after thirty."""


class CancelledFlow(NamedTuple):
    """A flow run that was cancelled while this process works for it.

    Attributes:
        id: The root flow run, or the child that is executing.
        own: The flow runs that this process works for, each with the state that it was in.
        by_hand: Whether none of them has a deployment, so that no worker ends this process.
    """

    id: UUID
    own: dict[UUID, UUID | None]
    by_hand: bool


@per_process
def _ending(flow_run_id: UUID) -> asyncio.Lock:
    """Many waits of one flow run notice at the same time: one of them ends the runs."""
    return asyncio.Lock()


@per_process
def _ended() -> dict[UUID, list[str]]:
    """What may be left of the flow runs whose runs were ended here."""
    return {}


@per_process
def _roots() -> dict[UUID, UUID | None]:
    return {}


async def unless_cancelled(waiting: Coroutine[Any, Any, T], handles: Sequence[RunHandle]) -> T:
    """Wait, and look now and then whether the own flow run was cancelled. If so, end its runs, and the flow.

    Args:
        waiting: What to wait for.
        handles: The runs that are waited for. Those whose site is not saved can be ended by this process only.

    Raises:
        Abort: The flow run was cancelled; it is marked as such. No error that a flow's code would catch.
    """
    if runtime_flow_run.id is None:
        return await waiting
    wait, notice = asyncio.ensure_future(waiting), asyncio.ensure_future(_noticed())
    try:
        await asyncio.wait({wait, notice}, return_when=asyncio.FIRST_COMPLETED)
        if wait.done():
            return wait.result()
        cancelled = notice.result()
        left = await _end_runs(cancelled.id, handles)
        await _end_flow(cancelled)
        became = "Not all of its training runs were ended: see its log." if left else "Its training runs were ended."
        raise Abort(f"Flow run {cancelled.id} was cancelled. {became}")
    finally:
        wait.cancel()
        notice.cancel()


async def end_runs_if_cancelled(handles: Sequence[RunHandle]) -> None:
    """For a wait that is interrupted: end the runs if that is because the own flow run is being cancelled.

    Never raises: what interrupted the wait goes on up, whatever Prefect does now.
    """
    try:
        await asyncio.wait_for(_end_runs_if_cancelled(handles), INTERRUPTED)
    except Exception as error:  # noqa: BLE001
        run_logger().warning("Whether the flow run is cancelled is not known (%s): its runs were left alone.", error)


async def _end_runs_if_cancelled(handles: Sequence[RunHandle]) -> None:
    if runtime_flow_run.id is not None and (cancelled := await _cancelled()):
        await _end_runs(cancelled.id, handles, within=INTERRUPTED - 2)
        return
    run_logger().warning(
        "The wait was interrupted, not cancelled. What has not ended goes on: %s%s. A retry of the flow run takes it "
        "over; `prefect-mantik cancel` ends it.",
        ", ".join(handle.describe() for handle in handles[:_SHOWN]),
        f" and {len(handles) - _SHOWN} more" if len(handles) > _SHOWN else "",
    )


async def _noticed() -> CancelledFlow:
    executing, heard = UUID(str(runtime_flow_run.id)), asyncio.Event()
    stream = event_stream()
    stop = stream.listen(CANCELS, lambda event: heard.set() if _is_of(executing, event) else None, heard.set)
    beside = NOTICE_BESIDE
    try:
        while True:
            await _until_it_is_time(heard, stream, beside)
            heard.clear()
            beside = NOTICE
            try:
                cancelled = await _cancelled()
            except Exception as error:  # noqa: BLE001  # a Prefect that is away must not end a wait of days
                run_logger().debug("Whether the flow run was cancelled is not known: %s", error)
                continue
            if cancelled:
                return cancelled
            beside = NOTICE_BESIDE
    finally:
        stop()


async def _until_it_is_time(heard: asyncio.Event, stream: EventStream, beside: float) -> None:
    """Until a cancel is heard, or may have been missed, or a look is due: often only while nothing can be heard."""
    began = monotonic()
    jitter = random.uniform(0.8, 1.0)  # noqa: S311
    while not heard.is_set():
        left = began + jitter * (beside if stream.connected else NOTICE) - monotonic()
        if left <= 0:
            return
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(heard.wait(), min(left, NOTICE))


def _is_of(executing: UUID, event: Event) -> bool:
    """Whether an event is of the flow run that executes here, or of its root, which is not known at first."""
    own = {executing, _roots().get(executing, executing)}
    return executing not in _roots() or any(event.resource.id == f"prefect.flow-run.{id}" for id in own)


async def _cancelled() -> CancelledFlow | None:
    """The root flow run, or the one that is executing, if it is being cancelled or is already."""
    executing = UUID(str(runtime_flow_run.id))
    if executing not in _roots():
        _roots()[executing] = await root_flow_run_id()
    root = _roots()[executing]
    if root is None:
        return None
    async with get_client() as client:
        found = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[root, executing])), limit=2
        )
    flow_runs = {flow_run.id: flow_run for flow_run in found}
    for id in dict.fromkeys((root, executing)):
        state = flow_runs[id].state if id in flow_runs else None
        if state and (state.is_cancelling() or state.is_cancelled()):
            by_hand = all(flow_run.deployment_id is None for flow_run in found)
            own = {one: flow_runs[one].state_id for one in (executing, id) if one in flow_runs}
            return CancelledFlow(id, own, by_hand)
    return None


async def _end_runs(flow_run_id: UUID, handles: Sequence[RunHandle], within: float = cancelling.TIMEOUT) -> list[str]:
    """End the runs of a flow run once, whoever notices; and say what may be left."""
    async with _ending(flow_run_id):
        if flow_run_id not in _ended():
            run_logger().warning("This flow run was cancelled: its training runs are ended.")
            here = cancelling.Ended()
            unsaved = [
                handle for handle in handles if handle.site is None and handle.key and handle.key.scope == "flow"
            ]
            for handle in unsaved:
                await cancelling.cancel_one(await site_of(handle), handle, here, run_logger())
            elsewhere = [handle.remote_id for handle in unsaved]
            saved = await cancelling.cancel_runs_of(flow_run_id, run_logger(), within=within, elsewhere=elsewhere)
            _ended()[flow_run_id] = here.left + saved.left
        return _ended()[flow_run_id]


async def _end_flow(cancelled: CancelledFlow) -> None:
    """A worker ends this process and calls the flow's hooks; without one, we say that the flow run is cancelled."""
    if not cancelled.by_hand:
        await sleep(KILLED_WITHIN)
    async with get_client() as client:
        for id, state_id in cancelled.own.items():
            now = await client.read_flow_run(id)
            same = now.state_id == state_id or (now.state is not None and now.state.is_cancelling())
            if same:  # else somebody retried it meanwhile
                await client.set_flow_run_state(id, Cancelled(message="Cancelled; its wait noticed it."), force=True)
