"""The watcher: asks the runs of all suspended flow runs, and resumes those whose runs have ended.

It keeps nothing that it could not do without, so that one that died, or two at once, do no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events import emit_event
from pydantic import BaseModel, ConfigDict

from prefect_mantik.errors import MantikError
from prefect_mantik.kept import KEY_PREFIX, Kept, kept_of
from prefect_mantik.lifecycle.heartbeat import WAITING
from prefect_mantik.lifecycle.suspended import SuspendedFlowRuns, link, named
from prefect_mantik.log import run_logger
from prefect_mantik.runs import RunHandle, RunStatus
from prefect_mantik.sites.base import Site
from prefect_mantik.waiting.rounds import Attendance, Round

TEND_TIMEOUT = 30.0
"""Seconds that a site may take to help a run along."""

LATE_HEARTBEAT = timedelta(minutes=10)

_PAGE = 20
"""Flow runs in one answer: each may have a label of some hundred kilobytes."""
_AT_ONCE = 8


class WatchedFlowRun(BaseModel):
    """A suspended flow run.

    Attributes:
        id: Of the flow run.
        name: Of the flow run.
        link: Where to see it.
        runs: How many training runs it waits for.
        ended: How many of them have ended.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    id: UUID
    name: str
    link: str
    runs: int
    ended: int


class Watched(BaseModel):
    """What one round of the watcher saw and did.

    Attributes:
        resumed: Flow runs whose runs have ended, or whose timeout passed.
        waiting: Flow runs that go on waiting.
        left_alone: Links of flow runs that wait for runs no more: somebody suspended them for another reason.
        troubles: One sentence for each thing that it could not do.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    resumed: list[WatchedFlowRun]
    waiting: list[WatchedFlowRun]
    left_alone: list[str]
    troubles: list[str]

    def describe(self) -> str:
        """One sentence for a log."""
        suspended = len(self.resumed) + len(self.waiting)
        return (
            f"{suspended} suspended flow runs: {len(self.resumed)} resumed, {len(self.waiting)} still wait, "
            f"{len(self.troubles)} problems."
        )


@dataclass
class Watcher:
    """Rounds of one process. What it remembers between them only saves calls and repeated words.

    Attributes:
        attendance: The runs, which pollers ask for as often as their age deserves.
        closed: Runs that have ended and whose books are closed.
        shown: What people see of the flow runs.
    """

    attendance: Attendance = field(default_factory=Attendance)
    closed: dict[RunHandle, RunStatus] = field(default_factory=dict)
    shown: SuspendedFlowRuns = field(default_factory=SuspendedFlowRuns)
    _signed: set[tuple[UUID, str | None]] = field(default_factory=set)
    _said: set[str] = field(default_factory=set)
    _flow_names: dict[UUID, str] = field(default_factory=dict)

    async def watch(self) -> Watched:
        """Do one round."""
        troubles: list[str] = []
        left_alone: list[str] = []
        ours: list[tuple[FlowRun, Kept]] = []
        async for flow_run in _suspended():
            try:
                kept = kept_of(flow_run)
            except MantikError as error:
                troubles.append(f"{named(flow_run)}: {error}")
                continue
            if kept and kept.key == _pause_key(flow_run):
                ours.append((flow_run, kept))
            elif (_pause_key(flow_run) or "").startswith(KEY_PREFIX):
                troubles.append(f"{named(flow_run)} has lost the label of what it waits for: resume it by hand.")
            elif kept:
                left_alone.append(link(flow_run))
        told = await self._ask({handle for _, kept in ours for handle in kept.awaited})
        troubles += await self.shown.show(ours, told)
        # Before they are resumed: then their own processes write their cards.
        await self.shown.leave((flow_run.id, kept.key) for flow_run, kept in ours if _is_due(kept, told))
        resumed: list[WatchedFlowRun] = []
        waiting: list[WatchedFlowRun] = []
        for flow_run, kept in ours:
            troubles += [f"{named(flow_run)}: {words}" for words in _troubles_of(kept, told)]
            try:
                is_resumed = _is_due(kept, told) and await _resume(flow_run, kept)
                if not is_resumed:
                    await self._emit_sign_of_life(flow_run)
            except Exception as error:  # noqa: BLE001  # one that cannot be resumed must not keep the others
                troubles.append(f"{named(flow_run)} was not resumed. {type(error).__name__}: {error}")
                is_resumed = False
            ended = sum(told.statuses[handle].state.is_end for handle in kept.awaited)
            (resumed if is_resumed else waiting).append(_watched(flow_run, kept, ended))
        self._say(troubles)
        return Watched(resumed=resumed, waiting=waiting, left_alone=left_alone, troubles=troubles)

    async def _ask(self, handles: set[RunHandle]) -> Round:
        """Ask what may have changed, and help the runs along as a wait does."""
        for gone in self.closed.keys() - handles:
            del self.closed[gone]
        told = await self.attendance.attend([handle for handle in handles if handle not in self.closed])
        known = [handle for handle in told.sites if handle not in told.troubles]
        turn = asyncio.Semaphore(_AT_ONCE)
        helped = await asyncio.gather(*(_tend(told.sites[run], run, told.statuses[run], turn) for run in known))
        for handle, trouble in zip(known, helped, strict=True):
            if trouble:
                told.troubles[handle] = trouble
            elif told.statuses[handle].state.is_end:
                self.closed[handle] = told.statuses[handle]
        told.statuses |= self.closed
        return told

    async def leave(self) -> None:
        """Ask and show nothing any more."""
        self.attendance.leave()
        await self.shown.leave()

    async def _emit_sign_of_life(self, flow_run: FlowRun) -> None:
        """A suspended flow run has no process: the watcher tells the heartbeat automation that none is missed.

        A last heartbeat may come some time after the word that it is suspended; later once a process is enough.
        """
        since = flow_run.state.timestamp if flow_run.state else None
        suspended = (flow_run.id, _pause_key(flow_run))
        if suspended in self._signed and since and datetime.now(timezone.utc) - since > LATE_HEARTBEAT:
            return
        self._signed.add(suspended)
        if flow_run.flow_id not in self._flow_names:
            async with get_client() as client:
                self._flow_names[flow_run.flow_id] = (await client.read_flow(flow_run.flow_id)).name
        flow = {
            "prefect.resource.id": f"prefect.flow.{flow_run.flow_id}",
            "prefect.resource.role": "flow",
            "prefect.resource.name": self._flow_names[flow_run.flow_id],
        }
        resource = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.name": flow_run.name}
        emit_event(WAITING, resource=resource, related=[flow])

    def _say(self, troubles: list[str]) -> None:
        """Say each thing once, until it is over."""
        for sentence in troubles:
            if sentence not in self._said:
                run_logger().warning(sentence)
        self._said = set(troubles)


async def _suspended() -> AsyncIterator[FlowRun]:
    wanted = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Suspended"])))
    async with get_client() as client:
        offset = 0
        while True:
            found = await client.read_flow_runs(
                flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=_PAGE, offset=offset
            )
            for flow_run in found:
                yield flow_run
            if len(found) < _PAGE:
                return
            offset += _PAGE


async def _tend(site: Site, handle: RunHandle, status: RunStatus, turn: asyncio.Semaphore) -> str:
    """Let a site help its run along; give what went wrong."""
    async with turn:
        try:
            await asyncio.wait_for(site.tend({handle: status}), TEND_TIMEOUT)
        except Exception as error:  # noqa: BLE001  # help that fails must not keep a flow from its result
            return f"{handle.describe()}: {str(error) or 'no answer in time'}"
    return ""


def _is_due(kept: Kept, told: Round) -> bool:
    return told.all_ended(kept.awaited) or (kept.until is not None and kept.until <= datetime.now(timezone.utc))


async def _resume(flow_run: FlowRun, kept: Kept) -> bool:
    """Resume a flow run, unless it is no longer suspended by that wait."""
    async with get_client() as client:
        now = await client.read_flow_run(flow_run.id)
        if now.state is None or now.state.name != "Suspended" or _pause_key(now) != kept.key:
            return False
        answer = await client.resume_flow_run(flow_run.id)
        if answer.status == SetStateStatus.REJECT:
            raise MantikError(await _why_rejected(client, flow_run))
    return answer.status == SetStateStatus.ACCEPT


async def _why_rejected(client: PrefectClient, flow_run: FlowRun) -> str:
    state = (await client.read_flow_run(flow_run.id)).state
    return f"Prefect refused; it is {state.name if state else 'in no state'} now."


def _troubles_of(kept: Kept, told: Round) -> list[str]:
    """What went wrong, once for each cause, with the first run that it meets."""
    first: Mapping[str, RunHandle] = {
        told.troubles[handle]: handle for handle in reversed(kept.awaited) if handle in told.troubles
    }
    return [
        f"{handle.describe()} cannot be asked. {words}" if handle.describe() not in words else words
        for words, handle in first.items()
    ]


def _watched(flow_run: FlowRun, kept: Kept, ended: int) -> WatchedFlowRun:
    return WatchedFlowRun(id=flow_run.id, name=flow_run.name, link=link(flow_run), runs=len(kept.awaited), ended=ended)


def _pause_key(flow_run: FlowRun) -> str | None:
    return flow_run.state.state_details.pause_key if flow_run.state else None
