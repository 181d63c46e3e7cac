"""The jobs at a UNICORE site that the platform submitted. Each is known there by the variables that it was given."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from prefect_mantik.credentials import MantikConnection
from prefect_mantik.errors import LoginRefused, NotFound, RequestFailed
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.runs import RunHandle, RunStatus
from prefect_mantik.sites.base import not_found
from prefect_mantik.sites.unicore.jobs import UnicoreJobs
from prefect_mantik.sites.unicore.login import credential_of
from prefect_mantik.unicore import UnicoreClient, unicore_client

_MANY = 50


class UnicoreBehind:
    """See `SiteBehind`.

    Args:
        api_url: The site's REST API, from the backend config.
        connection: Whose login the platform uses there.
        name: What to call the site.
    """

    def __init__(self, api_url: str, connection: MantikConnection, name: str) -> None:
        self._name = name
        self._client: UnicoreClient = unicore_client(api_url, credential_of(connection))
        self._jobs = UnicoreJobs(self._client)
        self._names, self._looking = _names_at(self._client)

    async def statuses(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        """See `SiteBehind`."""
        if any(self._known(handle) is None for handle in handles):
            await self._look()
        found = await asyncio.gather(*(self._status(handle) for handle in handles))
        return {handle: status for handle, status in zip(handles, found, strict=True) if status}

    async def _status(self, handle: RunHandle) -> RunStatus | None:
        job = self._known(handle)
        if job is None:
            return None
        try:
            return await self._jobs.status(job)
        except LoginRefused:
            raise
        except NotFound as error:
            return await self._gone(handle, job, str(error))
        except RequestFailed as error:  # one that cannot be asked now says nothing of the others
            run_logger().debug("%s at %s: %s", handle.describe(), self._name, error)
            return None

    async def _gone(self, handle: RunHandle, job: str, words: str) -> RunStatus | None:
        """A job that was there, and is neither known nor listed any more."""
        try:
            return None if job in await self._client.jobs() else not_found(handle, words)
        except RequestFailed:
            return None

    async def cancel(self, handle: RunHandle) -> bool:
        """See `SiteBehind`."""
        job = await self._job_of(handle)
        if job is not None:
            await self._jobs.cancel(job)
        return job is not None

    async def read_log(self, handle: RunHandle, offset: int, limit: int | None = None) -> tuple[bytes, int] | None:
        """See `SiteBehind`."""
        job = await self._job_of(handle)
        return await self._jobs.read_log(job, offset, limit) if job else None

    async def log_in(self) -> None:
        """See `SiteBehind`."""
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
                run_logger().info("Looking through %d jobs at %s for the platform's.", len(new), self._name)
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
