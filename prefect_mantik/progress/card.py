"""One card for each flow run, whatever number of waits: when it is renewed, and what is on it.

It is renewed soon after a state changed, and now and then while times pass; never again within seconds. Each update
costs a call of Prefect and one of MLflow, and Prefect stores its whole text once more, as an event. So updates are the
rarer the larger the card is, and the longer the waits have lasted: of a training of days nobody needs the minute.

All of it is done in a task of the background loop, beside the waits: a Prefect that is away is said once, and tried
again.

Two processes that wait for the same flow run at the same time write one card in turns, each with its own runs.
"""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Mapping
from datetime import datetime, timezone
from time import monotonic
from uuid import UUID

from prefect.runtime import flow_run as runtime_flow_run

from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.progress.artifact import ProgressArtifact
from prefect_mantik.progress.reading import LastLogged
from prefect_mantik.progress.rendering import MOST_ROWS, Row, most_interesting, render
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus
from prefect_mantik.waiting.observing import Observed

SOONEST = 5.0
"""Seconds between two updates at least, and one more for each KiB of the card."""

EVERY, SELDOM = 60.0, 600.0
"""Seconds between two updates without a change: a sixtieth of the time since the first, within these."""

RETRY = 60.0
"""Seconds after which a Prefect that did not take an update is tried again."""

LAST_TRIES = (0.0, 2.0, 4.0)
"""Pauses before the tries of the last update: nobody would repeat it."""

DEADLINE = 10.0
"""Seconds for writing the card."""

MOST_RUNS = 2000
"""Runs that a card remembers; of those that ended, the earliest are forgotten first."""

CLOSED_CARDS = 8
"""Cards without a wait that a process remembers, so that the next wait of their flow runs adds to them."""


class Card:
    """What is known of the training runs of one flow run, in this process. To be used on the background loop only.

    Args:
        flow_run_id: Of the flow run.
        waited: Seconds for which other processes have waited there before.
    """

    def __init__(self, flow_run_id: UUID, waited: float = 0.0) -> None:
        self._artifact = ProgressArtifact(flow_run_id)
        self._logged = LastLogged()
        self._runs: dict[RunHandle, RunStatus | None] = {}
        self._forgotten = 0
        self._waits: dict[Progress, frozenset[RunHandle]] = {}
        self._changed = False
        self._away = False
        self._task: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._soonest = self._latest = monotonic()
        self._began = self._latest - waited

    @property
    def is_open(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waits)

    def take(self, wait: Progress, runs: Mapping[RunHandle, Observed]) -> None:
        """Take over what a wait knows, and renew the card if that is due."""
        self._keep(wait, runs)
        if (self._task is None or self._task.done()) and (self._changed or monotonic() >= self._latest):
            self._task = asyncio.ensure_future(self._renew())

    async def leave(self, wait: Progress, runs: Mapping[RunHandle, Observed]) -> None:
        """Take over the last of what a wait knows. The last wait of all sees to it that the card says so."""
        self._keep(wait, runs)
        del self._waits[wait]
        self._changed = True
        if self._waits:  # the next update is soon, and there will be a last one
            if self._task is None or self._task.done():
                self._task = asyncio.ensure_future(self._renew())
            return
        if self._task is not None:
            # Not waited for: `wait_for` of Python before 3.12 may lose a cancel. The lock keeps the order all the same.
            self._task.cancel()
            self._task = None
        for pause in LAST_TRIES:
            await sleep(pause)
            await self._update()
            if not self._changed or self._waits:
                return

    def _keep(self, wait: Progress, runs: Mapping[RunHandle, Observed]) -> None:
        self._waits[wait] = frozenset(runs)
        for handle, seen in runs.items():
            known = self._runs.get(handle)
            if handle not in self._runs or (seen.status and _told(seen.status) != _told(known)):
                self._changed = True
            self._runs[handle] = seen.status or known
        if len(self._runs) > MOST_RUNS:
            self._forget_old_ends()

    def _forget_old_ends(self) -> None:
        waited_for = self._waited_for()
        old = [handle for handle in self._runs if handle not in waited_for][: len(self._runs) - MOST_RUNS]
        for handle in old:
            del self._runs[handle]
        self._logged.forget(old)
        self._forgotten += len(old)

    def _waited_for(self) -> frozenset[RunHandle]:
        return frozenset().union(*self._waits.values())

    async def _renew(self) -> None:
        """Update the card once it may be, and again while it changed meanwhile."""
        while True:
            await sleep(max(0.0, self._soonest - monotonic()))
            if not self._waits:
                return
            await self._update()
            if not self._changed:
                return

    async def _update(self) -> None:
        async with self._writing:
            self._changed = False
            try:
                text = await self._text()
                await asyncio.wait_for(self._artifact.save(text), DEADLINE)
            except Exception as error:  # noqa: BLE001  # whatever it is: a wait of days goes on without a card
                self._changed = True
                self._soonest = self._latest = monotonic() + RETRY
                self._say_away(error)
                return
            now = monotonic()
            self._soonest = now + SOONEST + len(text.encode()) / 1024
            self._latest = max(self._soonest, now + min(max((now - self._began) / 60, EVERY), SELDOM))
            if self._away:
                self._away = False
                run_logger().info("The card of progress can be renewed again.")

    def _say_away(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            why = str(error) or f"{type(error).__name__}, no answer within {DEADLINE:.0f} s"
            run_logger().warning(
                "The card of progress cannot be renewed now; waiting goes on, and it is tried again. Prefect: %s", why
            )

    async def _text(self) -> str:
        shown = most_interesting(Row(handle, status) for handle, status in self._runs.items())[:MOST_ROWS]
        await self._logged.refresh({row.handle: row.status for row in shown})
        waited_for = self._waited_for()
        rows = [
            Row(handle, status, handle in waited_for, self._logged.of(handle)) for handle, status in self._runs.items()
        ]
        return render(rows, datetime.now(timezone.utc), forgotten=self._forgotten)


class Progress:
    """Shows one wait on the card of its flow run: an `Observer`.

    Args:
        card: Of the flow run.
    """

    def __init__(self, card: Card) -> None:
        self._card = card

    async def look(self, runs: Mapping[RunHandle, Observed]) -> None:
        """Take over what is known. Returns at once: the card is renewed beside the wait."""
        self._card.take(self, runs)

    async def close(self, runs: Mapping[RunHandle, Observed]) -> None:
        """Take over how it ended. For the last open wait of a flow run, also write that."""
        await self._card.leave(self, runs)


def progress_card() -> Progress | None:
    """As `progress_card_of`, of the flow run that is executing; None outside of one."""
    return progress_card_of(UUID(str(runtime_flow_run.id))) if runtime_flow_run.id else None


def progress_card_of(flow_run_id: UUID, waited: float = 0.0) -> Progress:
    """What shows a new wait on the card of a flow run.

    To be called on the background loop, once for each wait.

    Args:
        flow_run_id: Of the flow run.
        waited: Seconds for which other processes have waited there before.
    """
    cards = _cards()
    card = cards.pop(flow_run_id, None) or Card(flow_run_id, waited)
    cards[flow_run_id] = card  # the last one used stands last
    closed = [id for id, other in cards.items() if not other.is_open and other is not card]
    for id in closed[: max(0, len(closed) - CLOSED_CARDS)]:
        del cards[id]
    return Progress(card)


@per_process
def _cards() -> dict[UUID, Card]:
    return {}


def _told(status: RunStatus | None) -> tuple[object, ...] | None:
    """What of a status a person wants to see at once. A message may change all the time, and counts where it is why."""
    if status is None:
        return None
    why = status.message if status.state.is_end or status.reason is Reason.STUCK else ""
    word = "" if status.state is RunState.UNKNOWN else status.site_word  # there it is the error of each try
    return status.state, status.reason, status.exit_code, word, why
