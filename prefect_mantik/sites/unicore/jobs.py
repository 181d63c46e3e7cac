"""One UNICORE job asked, read and ended: by a site reached directly, and behind the platform by its Connection."""

from __future__ import annotations

import asyncio

from prefect_mantik.backend_config.unicore import LOG, SITE_LOG
from prefect_mantik.errors import NotFound, RequestFailed
from prefect_mantik.log import run_logger
from prefect_mantik.runs import RunStatus
from prefect_mantik.sites.unicore.states import CANCELLED_TAG, is_end, run_status
from prefect_mantik.unicore import JobProperties, UnicoreClient

EXIT_CODE_FILE = "UNICORE_SCRIPT_EXIT_CODE"

_TAIL = 4096

LOG_LIMIT = 16 * 2**20
"""Bytes of a log that one call reads."""

_SMALL = ("status", "statusMessage", "exitCode", "submissionTime", "consumedTime")
_ALL = (*_SMALL, "log", "tags")


class UnicoreJobs:
    """What can be done with a job whose id is known.

    Args:
        client: The site, as the account that owns the job.
    """

    def __init__(self, client: UnicoreClient) -> None:
        self._client = client

    async def status(self, job: str) -> RunStatus:
        """The status of a job: one small request while it lives, more when it ended badly.

        Raises:
            NotFound: The site has no such job.
            RequestFailed: It cannot be asked.
        """
        found = await self._client.job(job, *_SMALL)
        details = ""
        if found.status == "SUCCESSFUL" and found.exit_code is None:
            found = await self._without_exit_code(job, found)
        if found.status == "FAILED" or found.exit_code:
            log = await self._client.job(job, *_ALL)
            found = found.model_copy(update={"log": log.log, "tags": log.tags})
            details = await self._details(job)
        return run_status(found, self._client.now(), details)

    async def _without_exit_code(self, job: str, found: JobProperties) -> JobProperties:
        """A server calls a job successful whose wrapper was killed: only an exit code proves success."""
        if (await self._tail(job, EXIT_CODE_FILE)).strip() == "0":
            return found
        message = "the site says SUCCESSFUL, but the job left no exit code: it was killed, or its node died"
        return found.model_copy(update={"status": "FAILED", "status_message": message})

    async def _details(self, job: str) -> str:
        """What the batch system says, and what it wrote beside the job's own log: helps only."""
        told = await asyncio.gather(self._client.details(job), self._tail(job, SITE_LOG), return_exceptions=True)
        return "\n".join(text for text in told if isinstance(text, str))

    async def _tail(self, job: str, name: str) -> str:
        """The end of a file in a job's directory; empty where there is none."""
        try:
            size = (await self._client.stat(uspace(job), name)).size
        except NotFound:
            return ""
        if size == 0:
            return ""
        return (await self._client.read(uspace(job), name, max(0, size - _TAIL), size - 1)).decode(errors="replace")

    async def cancel(self, job: str) -> bool:
        """Abort a job and leave a mark that it was us; False for one that has ended, which is left as it is.

        Raises:
            NotFound: The site has no such job.
        """
        found = await self._client.job(job, "status", "tags")
        if is_end(found):
            return False
        # An answer that leaves the tags out is not taken for "none": without them nobody would find the job again.
        if "tags" in found.model_fields_set and CANCELLED_TAG not in found.tags:
            try:
                await self._client.set_tags(job, [*found.tags, CANCELLED_TAG])
            except RequestFailed as error:
                run_logger().warning("Job %s is not marked as cancelled by us. %s", job, error)
        await self._client.act("abort", job)
        return True

    async def read_log(self, job: str, offset: int, limit: int | None = None) -> tuple[bytes, int]:
        """See `Site.read_log`. At most `LOG_LIMIT` bytes."""
        try:
            size = (await self._client.stat(uspace(job), LOG)).size
        except NotFound:  # the job has not begun, or its directory is gone
            return b"", max(offset, 0)
        at = max(0, size + offset) if offset < 0 else min(offset, size)
        if at == size:
            return b"", at
        end = min(size, at + min(limit or LOG_LIMIT, LOG_LIMIT))
        part = await self._client.read(uspace(job), LOG, at, end - 1)
        return part, at + len(part)


def uspace(job: str) -> str:
    """The storage that is a job's directory (UNICORE/X: `UAS.JobManagement`)."""
    return f"{job}-uspace"
