"""What people see of a suspended flow run, which has no process to show it: changes in its log, and its card."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

from prefect.client.schemas.objects import FlowRun

from prefect_mantik.log import logging_to
from prefect_mantik.progress import Progress, progress_card_of
from prefect_mantik.runs import RunHandle, RunState
from prefect_mantik.waiting.observing import Observed
from prefect_mantik.waiting.rounds import Round
from prefect_mantik.waiting.settings import settings
from prefect_mantik.waiting.watching import Watched, stuck_because


class SuspendedFlowRun:
    """One flow run, as a process of the watcher shows it to people.

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


def _card(flow_run: FlowRun) -> Progress:
    now = datetime.now(timezone.utc)
    return progress_card_of(flow_run.id, waited=(now - (flow_run.start_time or now)).total_seconds())
