"""The directory of a job that waits for its files."""

from __future__ import annotations

import asyncio
from time import time as wall_clock

from prefect_mantik.errors import NotFound, RequestFailed
from prefect_mantik.sites import direct
from prefect_mantik.sites.unicore.jobs import uspace
from prefect_mantik.sites.unicore.states import is_end
from prefect_mantik.staging import StagedCode
from prefect_mantik.unicore import UnicoreClient

TIMEOUT = 60.0
"""Seconds in which a site makes the directory of a job that it took."""

_PAUSE = 0.2


class RunDirectory:
    """What we put into a job's directory.

    Args:
        client: The site.
        job: The job.
    """

    def __init__(self, client: UnicoreClient, job: str) -> None:
        self._client, self._job, self._place = client, job, uspace(job)

    async def fill(self, staged: StagedCode) -> None:
        """Send the code. It gets its name when it is whole: another submitter may be as far."""
        known = await self.names()
        if f"/{direct.CODE}" not in known:
            part = f"{direct.CODE}.{wall_clock():.6f}"
            await self._client.write(self._place, part, staged.archive)
            await self._client.rename(self._place, part, direct.CODE)
        if staged.image and f"/{staged.image.name}" not in known:
            await self._client.write(self._place, staged.image.name, staged.image)

    async def write_token(self, content: bytes) -> None:
        """Write the token file, for nobody else's eyes."""
        written = await self._client.write(self._place, direct.TOKEN_FILE, content)
        if written.permissions[3:].strip("-"):
            await self._client.set_permissions(self._place, direct.TOKEN_FILE, "rw-------")

    async def names(self) -> set[str]:
        """What the directory holds, once the files that came with the job are there.

        Raises:
            NotFound: The site did not make it in time, or the job ended without one.
        """
        began = wall_clock()
        deadline, ask_at = began + TIMEOUT, began + 1
        while True:
            try:
                names = set((await self._client.stat(self._place, "/")).content)
                if f"/{direct.TOKEN_FILE}" in names or wall_clock() > deadline:
                    return names
            except NotFound:
                if wall_clock() > deadline:
                    raise
            if wall_clock() > ask_at and await self._has_ended():
                raise NotFound(f"Job {self._job} ended before its files were there.")
            await asyncio.sleep(_PAUSE)

    async def _has_ended(self) -> bool:
        try:
            return is_end(await self._client.job(self._job, "status"))
        except RequestFailed:
            return False
