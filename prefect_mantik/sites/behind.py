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
from prefect_mantik.errors import ConfigurationError, LoginRefused, RequestFailed
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
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
        self.name, self.trouble = name, ""
        self._client: UnicoreClient = unicore_client(api_url, credential_of(connection))
        self._jobs = UnicoreJobs(self._client)
        self._names, self._looking = _names_at(self._client)

    async def freshened(self, tracked: dict[RunHandle, RunStatus]) -> dict[RunHandle, RunStatus]:
        """What MLflow says of runs, and what their site says of those that have not finished."""
        at_site = await self.statuses([run for run, told in tracked.items() if told.state is not RunState.FINISHED])
        return {run: fresher(told, at_site.get(run)) for run, told in tracked.items()}

    async def statuses(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        """The statuses of those runs whose jobs the site shows; trouble is said once, and leaves runs out."""
        try:
            if any(self._known(handle) is None for handle in handles):
                await self._look()
            found = await asyncio.gather(*(self._status(handle) for handle in handles))
        except (RequestFailed, ConfigurationError) as error:
            self._say(error)
            return {}
        self.trouble = ""
        return {handle: status for handle, status in zip(handles, found, strict=True) if status}

    async def _status(self, handle: RunHandle) -> RunStatus | None:
        job = self._known(handle)
        if job is None:
            return None
        try:
            return await self._jobs.status(job)
        except LoginRefused:
            raise
        except RequestFailed as error:  # one that is gone, or cannot be asked now, says nothing of the others
            run_logger().debug("%s at %s: %s", handle.describe(), self.name, error)
            return None

    def _say(self, error: Exception) -> None:
        if str(error) != self.trouble:
            self.trouble = str(error)
            run_logger().warning("%s is asked through MLflow only: %s", self.name, error)

    async def cancel(self, handle: RunHandle) -> bool:
        """Abort the job of a run; False where the site shows none, or cannot be asked (`trouble` tells)."""
        try:
            job = await self._job_of(handle)
            if job is not None:
                await self._jobs.cancel(job)
        except (RequestFailed, ConfigurationError) as error:
            self._say(error)
            return False
        return job is not None

    async def read_log(self, handle: RunHandle, offset: int) -> tuple[bytes, int] | None:
        """What is new in the log of a run; None where the site shows no job of it, or cannot be asked."""
        try:
            job = await self._job_of(handle)
            return await self._jobs.read_log(job, offset) if job else None
        except (RequestFailed, ConfigurationError) as error:
            self._say(error)
            return None

    async def log_in(self) -> None:
        """Log in at the site; raises what a login raises."""
        await self._client.who()

    async def _job_of(self, handle: RunHandle) -> str | None:
        if self._known(handle) is None:
            await self._look()
        return self._known(handle)

    async def _look(self) -> None:
        """Read the description of each job once: a job's tags say nothing of the platform's run."""
        async with self._looking:
            new = [job for job in await self._client.jobs() if job not in self._names]
            if len(new) > _MANY:
                run_logger().info("Looking through %d jobs at %s for the platform's.", len(new), self.name)
            await asyncio.gather(*(self._learn(job) for job in new))

    def _known(self, handle: RunHandle) -> str | None:
        """The job that shows the run's own id; one that shows none is known by the run's key."""
        key = f"{handle.site_key}-{handle.attempt}"
        for job, (job_key, run) in self._names.items():
            if (run == handle.mlflow_run_id) if run else (job_key == key):
                return job
        return None

    async def _learn(self, job: str) -> None:
        try:
            given = _variables((await self._client.submitted(job)).get("Environment"))
        except LoginRefused:
            raise
        except RequestFailed:
            return  # removed meanwhile, or asked again next time
        self._names[job] = str(given.get("MANTIK_RUN_KEY", "")), str(given.get("MLFLOW_RUN_ID", ""))


@per_process
def _names_at(client: UnicoreClient) -> tuple[dict[str, tuple[str, str]], asyncio.Lock]:
    """What is known of the jobs of an account: run key and MLflow run id of each. It does not change."""
    return {}, asyncio.Lock()


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
