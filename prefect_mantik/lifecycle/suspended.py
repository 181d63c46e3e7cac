"""What people see of suspended flow runs, which have no process to show it: changes in their logs, and their cards.

What goes wrong here is said, and keeps no flow run from being resumed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.utilities.urls import url_for

from prefect_mantik.kept import Kept
from prefect_mantik.log import logging_to, run_logger
from prefect_mantik.progress import Progress, progress_card_of
from prefect_mantik.runs import RunHandle, RunState
from prefect_mantik.waiting.observing import Observed
from prefect_mantik.waiting.rounds import Round
from prefect_mantik.waiting.settings import settings
from prefect_mantik.waiting.watching import Watched, stuck_because

LAST_WORDS = 10.0
"""Seconds for the last update of all cards that are left."""

_Suspension = tuple[UUID, str]
"""A flow run, and the key with which it is suspended: it may be so several times."""


class SuspendedFlowRuns:
    """Those of a Prefect server, as a process of the watcher shows them to people."""

    def __init__(self) -> None:
        self._shown: dict[_Suspension, SuspendedFlowRun] = {}

    async def show(self, flow_runs: Sequence[tuple[FlowRun, Kept]], told: Round) -> list[str]:
        """Show what a round told; give what to say in the watcher's own log."""
        said: list[str] = []
        for flow_run, kept in flow_runs:
            try:
                shown = self._shown.get((flow_run.id, kept.key)) or SuspendedFlowRun(flow_run)
                self._shown[flow_run.id, kept.key] = shown
                await shown.show(kept.awaited, told)
                said += [f"{named(flow_run)}: {words}" for words in shown.stuck()]
            except Exception as error:  # noqa: BLE001  # whatever it is: its result matters more
                said.append(f"{named(flow_run)} cannot be shown. {type(error).__name__}: {error}")
        await self.leave(self._shown.keys() - {(flow_run.id, kept.key) for flow_run, kept in flow_runs})
        return said

    async def leave(self, suspensions: Iterable[_Suspension] | None = None) -> None:
        """Show some of them no more, by default all. Their cards are written once more."""
        keys = list(self._shown if suspensions is None else suspensions)
        leaving = [shown.leave() for key in keys if (shown := self._shown.pop(key, None))]
        try:
            await asyncio.wait_for(asyncio.gather(*leaving), LAST_WORDS)
        except Exception as error:  # noqa: BLE001  # as above
            run_logger().debug("Some cards were not written for the last time: %r", error)


class SuspendedFlowRun:
    """One of them.

    Args:
        flow_run: Which one.
    """

    def __init__(self, flow_run: FlowRun) -> None:
        self._flow_run = flow_run
        self._runs: dict[RunHandle, Watched] = {}
        self._observed: dict[RunHandle, Observed] = {}
        self._card = _card(flow_run) if settings().progress else None

    async def show(self, handles: Iterable[RunHandle], told: Round) -> None:
        """Show what a round told of runs: what changed in the log, and all of it on the card."""
        with logging_to(self._flow_run):
            for handle in handles:
                self._take(handle, told)
        if self._card:
            await self._card.look(self._observed)

    async def leave(self) -> None:
        """Show nothing more. The card is written once more."""
        if self._card:
            await self._card.close(self._observed)

    def stuck(self) -> list[str]:
        """One sentence for each run that will not start by itself."""
        return [
            f"{handle.describe()} will not start by itself: {run.stuck}"
            for handle, run in self._runs.items()
            if run.stuck
        ]

    def _take(self, handle: RunHandle, told: Round) -> None:
        site, status = told.sites.get(handle), told.statuses[handle]
        if site is None:  # it ended, and that was shown; or its block is gone, which the watcher says
            return
        self._observed[handle] = Observed(site, status)
        if status.state is RunState.UNKNOWN:
            return
        if handle not in self._runs:  # found so: each new process would say it anew
            self._runs[handle] = Watched(handle, site, status, stuck=stuck_because(status))
        self._runs[handle].take(status)


def link(flow_run: FlowRun) -> str:
    """Where to see a flow run."""
    return url_for("flow-run", obj_id=flow_run.id) or str(flow_run.id)


def named(flow_run: FlowRun) -> str:
    """A flow run, as the watcher's log names it."""
    return f"Flow run {flow_run.name} ({link(flow_run)})"


def _card(flow_run: FlowRun) -> Progress:
    now = datetime.now(timezone.utc)
    return progress_card_of(flow_run.id, waited=(now - (flow_run.start_time or now)).total_seconds())
