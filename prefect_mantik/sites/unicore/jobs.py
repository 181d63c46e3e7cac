"""One UNICORE job asked, read and ended: by a site reached directly, and behind the platform by its Connection."""

from __future__ import annotations

from datetime import datetime, timezone

from prefect_mantik.errors import NotFound, RequestFailed
from prefect_mantik.runs import RunStatus
from prefect_mantik.sites.unicore.states import CANCELLED_TAG, is_end, run_status
from prefect_mantik.unicore import JobProperties, UnicoreClient

LOG = "mantik.log"
SITE_LOG = "mantik.err"
EXIT_CODE_FILE = "UNICORE_SCRIPT_EXIT_CODE"

_TAIL = 4096
_LOG_PAGE = 4 * 2**20
_SMALL = ("status", "statusMessage", "exitCode", "submissionTime", "consumedTime")
_ALL = (*_SMALL, "name", "log", "tags")


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
        if found.status == "FAILED":
            log = await self._client.job(job, *_ALL)
            found = found.model_copy(update={"name": log.name, "log": log.log, "tags": log.tags})
            details = await self._details(job)
        return run_status(found, datetime.now(timezone.utc), details)

    async def _without_exit_code(self, job: str, found: JobProperties) -> JobProperties:
        """A server calls a job successful whose wrapper was killed: only an exit code proves success."""
        if (await self._tail(job, EXIT_CODE_FILE)).strip() == "0":
            return found
        message = "the site says SUCCESSFUL, but the job left no exit code: it was killed, or its node died"
        return found.model_copy(update={"status": "FAILED", "status_message": message})

    async def _details(self, job: str) -> str:
        """What the batch system says, and what it wrote beside the job's own log: a help only."""
        try:
            return f"{await self._client.details(job)}\n{await self._tail(job, SITE_LOG)}"
        except RequestFailed:
            return ""

    async def _tail(self, job: str, name: str) -> str:
        """The end of a file in a job's directory; empty where there is none."""
        try:
            size = (await self._client.stat(uspace(job), name)).size
        except NotFound:
            return ""
        if size == 0:
            return ""
        return (await self._client.read(uspace(job), name, max(0, size - _TAIL), size - 1)).decode(errors="replace")

    async def cancel(self, job: str) -> None:
        """Abort a job and leave a mark that it was us; a job that has ended, or is gone, is left as it is."""
        try:
            found = await self._client.job(job, "status", "tags")
            if is_end(found):
                return
            if CANCELLED_TAG not in found.tags:
                await self._client.set_tags(job, [*found.tags, CANCELLED_TAG])
            await self._client.act("abort", job)
        except NotFound:
            return

    async def read_log(self, job: str, offset: int) -> tuple[bytes, int]:
        """What is new in a job's log from an offset on, or its last bytes for a negative one; and the next offset."""
        try:
            size = (await self._client.stat(uspace(job), LOG)).size
        except NotFound:  # the job has not begun, or its directory is gone
            return b"", max(offset, 0)
        at = max(0, size + offset) if offset < 0 else offset
        parts = []
        while at < size:
            parts.append(await self._client.read(uspace(job), LOG, at, min(size, at + _LOG_PAGE) - 1))
            if not parts[-1]:
                break
            at += len(parts[-1])
        return b"".join(parts), at


def uspace(job: str) -> str:
    """The storage that is a job's directory (UNICORE/X: `UAS.JobManagement`)."""
    return f"{job}-uspace"
