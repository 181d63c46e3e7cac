"""Jobs at a FirecREST site asked, read and ended: by a site reached directly, and behind the platform."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta, timezone

from prefect_mantik.api import impatient
from prefect_mantik.errors import (
    ConfigurationError,
    LoginRefused,
    MantikError,
    NotFound,
    RequestFailed,
    ServiceUnavailable,
)
from prefect_mantik.firecrest import FirecrestClient, Job
from prefect_mantik.firecrest.client import Window
from prefect_mantik.log import run_logger
from prefect_mantik.loop import per_process
from prefect_mantik.runs import Reason, RunStatus
from prefect_mantik.sites.firecrest.directory import cancelled_path
from prefect_mantik.sites.firecrest.reading import is_near_end, read_piece
from prefect_mantik.sites.firecrest.states import REQUEUED_AFTER, run_status, word

LOG_LIMIT = 16 * 2**20
"""Bytes of a log that one call reads."""

_WINDOWS: dict[Window, timedelta] = {
    "24h": timedelta(hours=24),
    "3d": timedelta(days=3),
    "7d": timedelta(days=7),
}
WIDEST: Window = "7d"
_MARGIN = timedelta(minutes=10)
"""Our clock may be behind the site's."""

_MARK_FIRST = 2.0
"""Seconds that a cancel waits for its mark."""

_AT_ONCE = 5.0
"""Seconds for what helps a cancel and is no need."""


class FirecrestJobs:
    """What can be done with jobs whose ids are known.

    Args:
        client: The site, as the account that owns the jobs.
    """

    def __init__(self, client: FirecrestClient) -> None:
        self._client = client

    async def look_up(self, wanted: Mapping[str, datetime | None]) -> dict[str, Job | MantikError]:
        """What the site says of jobs: one list for all of them, and each that is not in it by its id.

        Args:
            wanted: Ids, with the time when each was submitted, where that is known.

        Raises:
            LoginRefused: The site does not know us.
            RequestFailed: The list cannot be had.
        """
        return await self.completed(wanted, await self.listed(wanted.values()))

    async def completed(self, wanted: Iterable[str], listed: Mapping[str, Job]) -> dict[str, Job | MantikError]:
        """What a list says of some jobs, and for those that it leaves out what the site says by their ids."""
        answers: dict[str, Job | MantikError] = {job: listed[job] for job in wanted if job in listed}
        missing = [job for job in wanted if job not in listed]
        return answers | dict(zip(missing, await asyncio.gather(*map(self._one, missing)), strict=True))

    async def _one(self, job: str) -> Job | MantikError:
        if not job.isalnum():
            return NotFound(f"{job} is no job's id.")
        try:
            return await self._client.job(job)
        except LoginRefused:
            raise
        except MantikError as error:
            return error

    async def listed(self, submitted: Collection[datetime | None]) -> dict[str, Job]:
        """Our jobs by id, as far back as some were submitted; none where the list cannot be read: said once."""
        if not submitted:
            return {}
        from prefect_mantik.firecrest.requests import Unreadable

        try:
            return {job.job_id: job for job in await self._client.jobs(window_for(submitted))}
        except Unreadable as error:
            _warn(self._client, str(error))
            return {}

    async def status(self, job: Job) -> RunStatus:
        """The status of a job that was looked up; of one that was cancelled also whether that was us."""
        status = run_status(job, self._client.now())
        if status.reason is not Reason.CANCELLED_BY_OTHER:
            return status
        return status.model_copy(update={"reason": await self._by_whom(job)})

    async def _by_whom(self, job: Job) -> Reason:
        """Who cancelled a job, by the mark that we leave in its directory."""
        try:
            await self._client.stat(cancelled_path(job.working_directory, job.job_id))
        except NotFound:
            return Reason.CANCELLED_BY_OTHER
        except (LoginRefused, ServiceUnavailable):
            raise
        except (RequestFailed, ConfigurationError):  # a directory that is not ours to read, now or later
            return Reason.UNTOLD
        return Reason.CANCELLED_BY_US

    async def cancel(self, job: str, directory: str, is_ours: Callable[[Job], bool]) -> bool:
        """Cancel a job and leave a mark that it was us; False where nothing was to be cancelled.

        Whether it has ended and the mark are asked for and left, and waited for a few seconds only: neither a database
        nor a file system that is down may keep a job running. The mark comes first, so that who is killed in between
        leaves no job that was cancelled and seems to be another's doing.

        Args:
            job: Its id.
            directory: Where it runs, as far as that is known.
            is_ours: Whether a job of this id is the one that is meant: batch systems may begin to count anew.
        """
        found = await self._at_once(job)
        if found and (not is_ours(found) or _has_ended_for_good(found)):
            return False
        mark = asyncio.ensure_future(self._mark(job, found.working_directory if found else directory))
        await asyncio.wait({mark}, timeout=_MARK_FIRST)
        try:
            await self._client.cancel(job)
        except NotFound:
            return False
        finally:
            await mark
        return True

    async def _at_once(self, job: str) -> Job | None:
        """A job, where the site tells of it at once."""
        with impatient(_AT_ONCE):
            answer = await self._one(job)
        return answer if isinstance(answer, Job) else None

    async def _mark(self, job: str, directory: str) -> None:
        if not directory:
            return
        place, name = posixpath.split(cancelled_path(directory, job))
        try:
            with impatient(_AT_ONCE):
                await self._client.upload(place, name, b"by prefect-mantik\n")
        except (RequestFailed, ConfigurationError) as error:
            run_logger().warning("Job %s is not marked as cancelled by us. %s", job, error)

    async def read_log(self, path: str, offset: int, limit: int | None = None) -> tuple[bytes, int]:
        """See `Site.read_log`. About `LOG_LIMIT` bytes at most."""
        try:
            size = int((await self._client.stat(path))["size"])
        except NotFound:  # the job has not begun, or its directory is gone
            return b"", max(offset, 0)
        at = max(0, size + offset) if offset < 0 else min(offset, size)
        parts, end = [], min(size, at + min(limit or LOG_LIMIT, LOG_LIMIT))
        while at < end:
            piece = await read_piece(self._client, path, at, size)
            if not piece.data:
                break  # the log is shorter than a moment ago, or ends in the middle of a character
            parts.append(piece.data)
            near_end = is_near_end(at, size)
            at += len(piece.data)
            if near_end:
                break  # all was read: what is left may be half a character
        return b"".join(parts), at


def window_for(submitted: Collection[datetime | None]) -> Window:
    """The smallest window that shows jobs of an age, so that the server has little to do.

    Jobs that wait or run are in every list, however old. One that ended before all windows is asked for by its id.

    Args:
        submitted: When the jobs were submitted; one that is not known is taken for a young one.
    """
    now = datetime.now(timezone.utc)
    ages = [now - when + _MARGIN if when else timedelta(0) for when in submitted]
    shown = [age for age in ages if age <= _WINDOWS[WIDEST]]
    return next(name for name, span in _WINDOWS.items() if all(age <= span for age in shown))


def _has_ended_for_good(job: Job) -> bool:
    """Whether a job has ended, and is surely not back in the queue."""
    return run_status(job, datetime.now(timezone.utc)).state.is_end and word(job) not in REQUEUED_AFTER


@per_process
def _warn(client: FirecrestClient, error: str) -> None:
    """Say it once a process for each answer."""
    run_logger().warning(
        "%s cannot list the jobs of %s, so that each is asked for by its id meanwhile. %s",
        client.system,
        client.username,
        error,
    )
