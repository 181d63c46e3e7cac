"""What all kinds of site that are reached directly do alike: code, MLflow runs and tokens of their jobs."""

from __future__ import annotations

import asyncio
import builtins
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import datetime, timezone
from time import monotonic, time as wall_clock
from typing import NamedTuple

from prefect_mantik.credentials import MantikProject
from prefect_mantik.errors import ConfigurationError, LoginRefused, RequestFailed, ServiceUnavailable, SubmitRefused
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.runs import Reason, RunHandle, RunKey, RunSpec, RunState, RunStatus
from prefect_mantik.sites import direct, mlflow_runs
from prefect_mantik.sites.base import Capability, Site, not_told
from prefect_mantik.sites.tracked import run_status
from prefect_mantik.staging import StagedCode
from prefect_mantik.tracking import TrackedRun, TrackingClient

CLOSE_TIMEOUT = 10.0
"""Seconds that closing the MLflow run of a cancelled job may take: whoever cancels is in a hurry."""

KNOWN_FOR = 60.0
"""Seconds after which a saved account is looked up again, whose block may be another by then."""

_STAGINGS = 4


class Prepared(NamedTuple):
    """What a job needs before it is sent.

    Attributes:
        code: The packed code, for as long as the stack lives that it was prepared on.
        command: The entry point's command.
        run: The MLflow run that the job will log to.
        is_new: Whether that was made for it. One that waited already may be an earlier job's, of which nobody heard.
    """

    code: StagedCode
    command: str
    run: TrackedRun
    is_new: bool


@per_process
def _staging_slots() -> asyncio.Semaphore:
    """Repositories that are fetched and packed at the same time."""
    return asyncio.Semaphore(_STAGINGS)


class DirectSite(Site):
    """A site that is reached directly: we fetch the code of its runs and open their MLflow runs.

    Args:
        name: What to call it.
        reference: Of the saved block; None for a site made in code.
        settle: Seconds of clean looks that prove the absence of a job.
        project: Whose experiment tracks the runs, and whose repository holds their code. Needed to submit.
    """

    ends_duplicates = True

    def __init__(self, name: str, reference: str | None, settle: float, project: MantikProject | None) -> None:
        self.name, self.reference, self.settle = name, reference, settle
        self.project_id = project.project_id if project else None
        self.capabilities = frozenset(Capability)
        self._project = project
        self._found: dict[str, RunHandle] = {}
        self._refresh_at: dict[RunHandle, float] = {}
        self._trackings: dict[str | None, TrackingClient] = {}
        self._learned: dict[str | None, float] = {}
        self._learning = asyncio.Lock()

    # --- Before a job is sent ---

    def _needed_project(self) -> MantikProject:
        if self._project is None:
            raise ConfigurationError(
                f"{self.name} was opened without a Mantik project, so that nothing can be tracked."
            )
        return self._project

    async def _stage(self, spec: RunSpec, stack: AsyncExitStack, commit: str | None = None) -> StagedCode:
        """Pack the code, for as long as the stack lives."""
        async with _staging_slots():
            return await stack.enter_async_context(direct.staged_code(spec, self._needed_project(), commit))

    async def _prepare(self, spec: RunSpec, key: RunKey, attempt: int, stack: AsyncExitStack) -> Prepared:
        """Pack the code, check that it can be run, open the MLflow run.

        Raises:
            SubmitRefused: A server that is needed for it did not help.
        """
        try:
            code = await self._stage(spec, stack)
            command = direct.command_of(spec, code)
            run, is_new = await mlflow_runs.open_mlflow_run(self._needed_project(), spec, key, attempt, self)
        except (RequestFailed, OSError) as error:  # such as a disk that is full
            raise self._not_prepared(key, error) from error
        return Prepared(code, command, run, is_new)

    def _not_prepared(self, key: RunKey, error: Exception) -> SubmitRefused:
        return SubmitRefused(
            f"Nothing was submitted to {self.name} for key '{key.name}': what the run needs could not be prepared. "
            f"{error}"
        )

    async def _free_the_key(self, prepared: Prepared, error: RequestFailed | None = None) -> None:
        """Close the MLflow run of a submit of which it is certain that the site took no job, now or before.

        Args:
            prepared: What was prepared for the job.
            error: What the site said of it; None where it was not sent.
        """
        if prepared.is_new and (not isinstance(error, ServiceUnavailable) or not error.sent):
            await mlflow_runs.refuse_mlflow_run(self._needed_project(), prepared.run)

    # --- What MLflow knows and the site does not ---

    async def _forgotten(self, key: RunKey) -> builtins.list[RunHandle]:
        """Jobs that the site has forgotten."""
        return await mlflow_runs.forgotten_runs(self._project, key, self) if self._project else []

    async def _by_mlflow(self, handle: RunHandle) -> RunStatus | None:
        """How a run ended whose job the site does not know any more; None where MLflow does not tell.

        UNKNOWN where MLflow cannot be asked: that is of this run's account, and says nothing of other runs.
        """
        try:
            tracking = await self._tracking_of(handle)
            run = await tracking.run(handle.mlflow_run_id) if tracking and handle.mlflow_run_id else None
        except (RequestFailed, ConfigurationError) as error:
            return not_told(str(error))
        told = run_status(run, tracking.now()) if tracking and run else None
        if told is None or not told.state.is_end:
            return None
        return told.model_copy(update={"message": "the site has no such job any more; this is MLflow's word"})

    # --- While somebody waits ---

    async def tend(self, statuses: Mapping[RunHandle, RunStatus]) -> float | None:
        """Keep the token of a waiting job fresh, and close the MLflow run of one that ended. See `Site.tend`.

        The account of one that runs is learned now: its block is at Prefect, which may be away when the run ends.
        """
        try:
            return await self._tended(statuses)
        except LoginRefused:
            self._learned.clear()  # the next try takes the account that is saved then
            raise

    async def _tended(self, statuses: Mapping[RunHandle, RunStatus]) -> float | None:
        due = []
        for handle, status in statuses.items():
            if status.state is RunState.SCHEDULED:
                if wall_clock() >= self._refresh_at.get(handle, 0.0):
                    await self._write_token(handle)
                due.append(self._refresh_at.get(handle, 0.0) - wall_clock())
            elif status.state.is_end:
                await self._close_mlflow_run(handle, status)
            elif handle.account not in self._trackings:
                await self._tracking_of(handle)
        return max(0.0, min(due)) if due else None

    async def _tracking_of(self, handle: RunHandle) -> TrackingClient | None:
        """The tracking server of a run. While Prefect is away, the one that was known before."""
        async with self._learning:  # many runs end at once
            if monotonic() - self._learned.get(handle.account, -KNOWN_FOR) >= KNOWN_FOR:
                await self._learn_tracking(handle)
        return self._trackings.get(handle.account)

    async def _learn_tracking(self, handle: RunHandle) -> None:
        try:
            found = await mlflow_runs.tracking_of(handle, self._project)
        except Exception:
            if handle.account not in self._trackings:
                raise
        else:
            if found is None:
                return
            self._trackings[handle.account] = found
        self._learned[handle.account] = monotonic()

    async def _write_token(self, handle: RunHandle) -> None:
        tracking = await self._tracking_of(handle)
        if tracking is None:
            return
        token = await tracking.tokens.lasting()
        await self._put_token(handle, direct.token_file(token))
        self._refresh_at[handle] = token.refresh_at

    @abstractmethod
    async def _put_token(self, handle: RunHandle, content: bytes) -> None:
        """Write the token file into the directory of a job, for nobody else's eyes."""

    # --- After the end ---

    async def _close_mlflow_run(self, handle: RunHandle, status: RunStatus) -> None:
        """Close it, unless an older job has the same one: two submitters at the same instant may find one run."""
        sharing = [other for other in self._found.values() if other.mlflow_run_id == handle.mlflow_run_id]
        oldest = min(sharing, key=self.seniority, default=handle)
        if oldest.remote_id == handle.remote_id and (tracking := await self._tracking_of(handle)):
            await mlflow_runs.close_mlflow_run(tracking, handle, status)

    async def _close_as_ended(self, handle: RunHandle) -> None:
        """Close the MLflow run of a job that had ended before it was cancelled: whoever saw that end may be gone."""
        try:
            status = (await asyncio.wait_for(self.poll([handle]), CLOSE_TIMEOUT))[handle]
            if status.state.is_end:
                await asyncio.wait_for(self._close_mlflow_run(handle, status), CLOSE_TIMEOUT)
        except Exception as error:  # noqa: BLE001  # nothing is live: whatever MLflow or Prefect do now
            run_logger().warning("The MLflow run of %s was not closed. %s", handle.describe(), error)

    async def _close_as_killed(self, handle: RunHandle) -> None:
        """Close the MLflow run of a job that we cancel: it ends later, and nobody may ask then."""
        killed = RunStatus(state=RunState.KILLED, reason=Reason.CANCELLED_BY_US, observed_at=datetime.now(timezone.utc))
        try:
            await asyncio.wait_for(self._close_mlflow_run(handle, killed), CLOSE_TIMEOUT)
        except Exception as error:  # noqa: BLE001  # the job is cancelled: whatever MLflow or Prefect do now
            run_logger().warning("The MLflow run of %s was not closed. %s", handle.describe(), error)
