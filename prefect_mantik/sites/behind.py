"""The second way to a run that the platform submitted: its job, asked at the site with the Connection's own login.

The platform is not proven to tell a run's state or log, or to cancel it. Where it sends runs to a UNICORE site, and we
may read the Connection, the site itself can do all three. A job is known there by the run's key, which travels in its
variables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from prefect_mantik.credentials import MantikConnection
from prefect_mantik.errors import ConfigurationError, LoginRefused, NotFound, RequestFailed
from prefect_mantik.log import run_logger
from prefect_mantik.runs import Reason, RunHandle, RunState, RunStatus
from prefect_mantik.sites.unicore.jobs import UnicoreJobs
from prefect_mantik.sites.unicore.login import credential_of
from prefect_mantik.unicore import UnicoreClient, unicore_client

_MANY = 50


class JobsBehind:
    """The jobs at a UNICORE site that the platform submitted with a Connection.

    Args:
        api_url: The site's REST API, from the backend config.
        connection: Whose login the platform uses there.
        name: What to call the site.
    """

    def __init__(self, api_url: str, connection: MantikConnection, name: str) -> None:
        self.name = name
        self._client: UnicoreClient = unicore_client(api_url, credential_of(connection))
        self._jobs = UnicoreJobs(self._client)
        self._names: dict[str, tuple[str, str]] = {}
        self._looking = asyncio.Lock()
        self._trouble = ""

    async def statuses(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        """The statuses of those runs whose jobs the site shows; trouble is said once, and leaves runs out."""
        try:
            found = await asyncio.gather(*(self._status(handle) for handle in handles))
        except (RequestFailed, ConfigurationError) as error:
            self._say(error)
            return {}
        return {handle: status for handle, status in zip(handles, found, strict=True) if status}

    async def _status(self, handle: RunHandle) -> RunStatus | None:
        job = await self.job_of(handle)
        if job is None:
            return None
        try:
            return await self._jobs.status(job)
        except NotFound:
            return None

    def _say(self, error: Exception) -> None:
        if str(error) != self._trouble:
            self._trouble = str(error)
            run_logger().warning("%s is asked through MLflow only: %s", self.name, error)

    async def cancel(self, handle: RunHandle) -> bool:
        """Abort the job of a run; False where the site shows none."""
        job = await self.job_of(handle)
        if job is not None:
            await self._jobs.cancel(job)
        return job is not None

    async def read_log(self, handle: RunHandle, offset: int) -> tuple[bytes, int] | None:
        """What is new in the log of a run; None where the site shows no job of it."""
        job = await self.job_of(handle)
        return await self._jobs.read_log(job, offset) if job else None

    async def job_of(self, handle: RunHandle) -> str | None:
        """The id of a run's job. The description of each job is read once: its tags say nothing of the run.

        Raises:
            LoginRefused: The Connection's login is refused there, now or before.
            RequestFailed: The site cannot be asked.
        """
        wanted = (f"{handle.site_key}-{handle.attempt}", handle.mlflow_run_id)
        async with self._looking:
            if found := self._known(wanted):
                return found
            new = [job for job in await self._client.jobs() if job not in self._names]
            if len(new) > _MANY:
                run_logger().info("Looking through %d jobs at %s for the platform's.", len(new), self.name)
            await asyncio.gather(*(self._learn(job) for job in new))
            return self._known(wanted)

    def _known(self, wanted: tuple[str, str | None]) -> str | None:
        key, run = wanted
        return next((job for job, names in self._names.items() if key == names[0] or (run and run == names[1])), None)

    async def _learn(self, job: str) -> None:
        try:
            given = _variables((await self._client.submitted(job)).get("Environment"))
        except LoginRefused:
            raise
        except RequestFailed:
            return  # removed meanwhile, or asked again next time
        self._names[job] = str(given.get("MANTIK_RUN_KEY", "")), str(given.get("MLFLOW_RUN_ID", ""))


def _variables(environment: Any) -> Mapping[str, Any]:
    """UNICORE takes a mapping, or a list of `NAME=value`."""
    if isinstance(environment, list):
        return {name: value for name, _, value in (str(line).partition("=") for line in environment)}
    return environment if isinstance(environment, Mapping) else {}


def fresher(tracked: RunStatus, at_site: RunStatus | None) -> RunStatus:
    """The status of a run from what MLflow says and what its job's site says.

    The site knows whether the job lives, MLflow what the training said last: that it finished is the training's word.
    """
    if at_site is None or at_site.state is RunState.UNKNOWN or tracked.state is RunState.FINISHED:
        return tracked
    told_more = tracked.reason not in (None, Reason.UNTOLD)
    return at_site.model_copy(
        update={
            "life_at": tracked.life_at,
            "queued_at": at_site.queued_at or tracked.queued_at,
            "reason": tracked.reason if told_more and at_site.state is tracked.state else at_site.reason,
        }
    )
