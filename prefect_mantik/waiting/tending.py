"""While somebody waits, sites help their runs along: fresh tokens, closed books. Help never ends a wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prefect_mantik.log import run_logger
from prefect_mantik.runs import RunState, RunStatus
from prefect_mantik.waiting import clock
from prefect_mantik.waiting.watching import Watched

TEND_TIMEOUT = 30.0
"""Seconds that a site may take to help a run along."""

SHORTEST, LONGEST = 1.0, 60.0
"""Seconds between two helps of a run that nothing new was told of."""

LAST_TENDS = (1.0, 2.0, 4.0)
"""Pauses in seconds before the books of a run that ended are tried again: who waits wants the result."""

_AT_ONCE = 16


@dataclass(eq=False)
class Tended:
    """One run, and the help that it got.

    Attributes:
        run: The run.
        news: What was told since it was helped last.
        due: When its site wants to help it again.
        trouble: Why it could not be helped, as far as that was said.
        closings: How often the books of its end were tried.
    """

    run: Watched
    news: RunStatus | None = None
    due: float | None = None
    trouble: str = ""
    closings: int = 0

    @property
    def done(self) -> bool:
        """Whether nothing more is to be done for it."""
        if self.run.given_up:
            return True
        return self.closings > 0 and (not self.trouble or self.closings > len(LAST_TENDS))

    @property
    def is_due(self) -> bool:
        """Whether it is to be helped now."""
        return self.news is not None or (self.due is not None and self.due <= clock.monotonic())


async def tend(runs: Iterable[Tended]) -> None:
    """Let the sites help those of some runs that are due, a few at a time."""
    due = iter([one for one in runs if one.is_due and not one.done])
    await asyncio.gather(*(_tend_in_turn(due) for _ in range(_AT_ONCE)))


async def _tend_in_turn(due: Iterator[Tended]) -> None:
    for one in due:  # of all who help; a task for each run would be megabytes
        await _tend_one(one)


async def _tend_one(one: Tended) -> None:
    status, one.news = one.news or one.run.status, None
    if status is None:
        one.due = None
        return
    again = await _helped(one, status)
    if status.state.is_end:
        pause = LAST_TENDS[one.closings] if one.closings < len(LAST_TENDS) else LONGEST
        one.closings += 1
        one.due = clock.monotonic() + pause
    elif status.state is RunState.SCHEDULED and again is not None:
        one.due = clock.monotonic() + min(max(again, SHORTEST), LONGEST)
    else:
        one.due = None


async def _helped(one: Tended, status: RunStatus) -> float | None:
    """When the site wants to help again; None: with the next news."""
    run = one.run
    try:
        again = await asyncio.wait_for(run.site.tend({run.handle: status}), TEND_TIMEOUT)
    except Exception as error:  # noqa: BLE001  # help that fails must not end a wait of days
        trouble = str(error) or "no answer in time"
        if trouble != one.trouble:
            one.trouble = trouble
            run_logger().warning("%s: %s", run.handle.describe(), trouble)
        return LONGEST
    one.trouble = ""
    return again
