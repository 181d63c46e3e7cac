"""The second way to a run that the platform submitted: its job, asked at the site with the Connection's own login.

The platform is not proven to tell a run's state or log, or to cancel it. Where it sends runs to a UNICORE or FirecREST
site, and we may read the Connection, the site itself can do all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from prefect_mantik.errors import ConfigurationError, RequestFailed
from prefect_mantik.log import run_logger
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus


class SiteBehind(Protocol):
    """A site's jobs, known by the runs of the platform that they are for. What cannot be asked raises."""

    async def statuses(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        """The statuses of those runs whose jobs the site shows."""
        ...

    async def cancel(self, handle: RunHandle) -> bool:
        """End the job of a run; False where the site shows none."""
        ...

    async def read_log(self, handle: RunHandle, offset: int, limit: int | None = None) -> tuple[bytes, int] | None:
        """What is new in the log of a run; None where the site shows no job of it."""
        ...

    async def log_in(self) -> None:
        """Log in at the site."""
        ...


class JobsBehind:
    """The jobs that the platform submitted with a Connection. Trouble is said once, and leaves runs to MLflow's word.

    Args:
        site: Where the jobs are.
        name: What to call it.
    """

    def __init__(self, site: SiteBehind, name: str) -> None:
        self._site, self.name, self.trouble = site, name, ""

    async def freshened(self, tracked: Mapping[RunHandle, RunStatus]) -> dict[RunHandle, RunStatus]:
        """What MLflow says of runs, and what their site says of those that have not finished."""
        at_site = await self.statuses([run for run, told in tracked.items() if told.state is not RunState.FINISHED])
        return {run: fresher(told, at_site.get(run)) for run, told in tracked.items()}

    async def statuses(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        """The statuses of those runs whose jobs the site shows."""
        try:
            found = await self._site.statuses(handles) if handles else {}
        except (RequestFailed, ConfigurationError) as error:
            self._say(error)
            return {}
        self.trouble = ""
        return found

    def _say(self, error: Exception) -> None:
        if str(error) != self.trouble:
            self.trouble = str(error)
            run_logger().warning("%s is asked through MLflow only: %s", self.name, error)

    async def cancel(self, handle: RunHandle) -> bool:
        """End the job of a run; False where the site shows none, or cannot be asked (`trouble` tells)."""
        try:
            return await self._site.cancel(handle)
        except (RequestFailed, ConfigurationError) as error:
            self._say(error)
            return False

    async def read_log(self, handle: RunHandle, offset: int, limit: int | None = None) -> tuple[bytes, int] | None:
        """What is new in the log of a run; None where the site shows no job of it, or cannot be asked."""
        try:
            return await self._site.read_log(handle, offset, limit)
        except (RequestFailed, ConfigurationError) as error:
            self._say(error)
            return None

    async def log_in(self) -> None:
        """Log in at the site; raises what a login raises."""
        await self._site.log_in()


def fresher(tracked: RunStatus, at_site: RunStatus | None) -> RunStatus:
    """The status of a run from what MLflow says and what its job's site says.

    The site knows whether the job lives, MLflow what the training said last: that it finished is the training's word.
    """
    if at_site is None or at_site.state is RunState.UNKNOWN or tracked.state is RunState.FINISHED:
        return tracked
    if at_site.state is RunState.LOST and tracked.state.is_end:
        return tracked  # how it ended, before the site forgot it
    told_more = tracked.reason not in (None, Reason.UNTOLD)
    return at_site.model_copy(
        update={
            "life_at": tracked.life_at,
            "queued_at": at_site.queued_at or tracked.queued_at,
            "reason": tracked.reason if told_more and at_site.state is tracked.state else at_site.reason,
        }
    )
