"""The jobs at a FirecREST site that the platform submitted: it names each after its MLflow run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prefect_mantik.backend_config import Firecrest
from prefect_mantik.credentials import MantikConnection
from prefect_mantik.errors import LoginRefused, MantikError, RequestFailed
from prefect_mantik.firecrest import FirecrestClient, Job, firecrest_client
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.runs import RunHandle, RunStatus
from prefect_mantik.sites.firecrest.jobs import WIDEST, FirecrestJobs
from prefect_mantik.sites.firecrest.login import client_of

_PREFIX = "mantik-"


class FirecrestBehind:
    """See `SiteBehind`.

    Args:
        where: The system, from the backend config.
        connection: Whose login the platform uses there.
    """

    def __init__(self, where: Firecrest, connection: MantikConnection) -> None:
        self._client: FirecrestClient = firecrest_client(
            where.api_url, where.token_url, where.machine, client_of(connection)
        )
        self._jobs = FirecrestJobs(self._client)
        self._ids, self._logs = _known_at(self._client)

    async def statuses(self, handles: Sequence[RunHandle]) -> dict[RunHandle, RunStatus]:
        """See `SiteBehind`. One list for all, and each known job that is not in it by its id."""
        listed = await self._jobs.listed([handle.submitted_at for handle in handles])
        self._ids.update({job.name: job.job_id for job in listed.values()})
        jobs = {handle: job for handle in handles if (job := self._id(handle))}
        answers = await self._jobs.completed(jobs.values(), listed)
        found = await asyncio.gather(*(self._status(answers[job]) for job in jobs.values()))
        return {handle: status for handle, status in zip(jobs, found, strict=True) if status}

    async def _status(self, answer: Job | MantikError) -> RunStatus | None:
        try:
            if isinstance(answer, Job):
                return await self._jobs.status(answer)
        except LoginRefused:
            raise
        except RequestFailed as error:  # one whose directory cannot be asked now says nothing of the others
            answer = error
        run_logger().debug("A job at %s: %s", self._client.system, answer)
        return None

    async def cancel(self, handle: RunHandle) -> bool:
        """See `SiteBehind`."""
        job = await self._job_of(handle)
        if job is not None:
            name = f"{_PREFIX}{handle.mlflow_run_id}"
            await self._jobs.cancel(job, "", lambda found: found.name == name)
        return job is not None

    async def read_log(self, handle: RunHandle, offset: int, limit: int | None = None) -> tuple[bytes, int] | None:
        """See `SiteBehind`."""
        job = await self._job_of(handle)
        if job is None:
            return None
        if job not in self._logs:
            self._logs[job] = await self._client.output_path(job)
        return await self._jobs.read_log(self._logs[job], offset, limit)

    async def log_in(self) -> None:
        """See `SiteBehind`. FirecREST gives a token, and the list of systems, also to who has no account there."""
        await self._client.log_in()
        await self._client.user()

    async def _job_of(self, handle: RunHandle) -> str | None:
        if self._id(handle) is None:
            await self._look()
        return self._id(handle)

    def _id(self, handle: RunHandle) -> str | None:
        return self._ids.get(f"{_PREFIX}{handle.mlflow_run_id}")

    async def _look(self) -> None:
        self._ids.update({job.name: job.job_id for job in await self._client.jobs(WIDEST)})


@per_process
def _known_at(client: FirecrestClient) -> tuple[dict[str, str], dict[str, str]]:
    """What is known of the jobs of an account, and does not change: ids by name, and where each writes its output."""
    return {}, {}
