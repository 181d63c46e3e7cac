"""The directory of a run at a FirecREST site: where it is, what is put into it, what it tells of jobs long gone.

    <root>/<site key>-<attempt>/<MLflow run id>/
        mantik-code-<digest>.tar.gz.0000 …   the code, in pieces that the server takes; the job joins them
        mantik-token                         for the tracking server, mode 0600 in a directory of mode 0700
        mantik-run.json                      what a handle needs
        mantik-job-<id>                      left by the job when it starts
        mantik-running                       names the job that trains here
        mantik-cancelled-<id>                left by us when we cancel it
        mantik.log                           the job's output

The path is a function of the key, so that staging can be repeated. The last part is the MLflow run: a job's working
directory tells which run it logs to, and of two submitters that made a run each nobody gets the other's token or log.
Those that found the same run share its directory, and there one job trains.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import posixpath
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from prefect_mantik.backend_config.unicore import LOG
from prefect_mantik.errors import NotFound, RequestFailed
from prefect_mantik.firecrest import FirecrestClient
from prefect_mantik.log import run_logger
from prefect_mantik.runs import RunHandle
from prefect_mantik.sites import direct
from prefect_mantik.staging import StagedCode

RECORD = "mantik-run.json"
_CANCELLED = "mantik-cancelled-"
STARTED = "mantik-job-"
TAKE = f"""\
echo "$SLURM_JOB_ID" > "{STARTED}$SLURM_JOB_ID"
ln "{STARTED}$SLURM_JOB_ID" mantik-running 2> /dev/null
mantik_owner=$(cat mantik-running 2> /dev/null)
if [ -n "$mantik_owner" ] && [ "$mantik_owner" != "$SLURM_JOB_ID" ] && [ ! -e "{_CANCELLED}$mantik_owner" ]; then
  echo "mantik: job $mantik_owner trains in this directory, so this one (job $SLURM_JOB_ID) ends"
  exit 1
fi"""
"""The first lines of a job. Of two that a misled submit may have made for one run, one trains: making a link is atomic.
One that we cancelled has no say any more."""

MAX_PIECE = 4 * 2**20
"""Bytes of one upload: servers take 5 MiB by default."""

_RUN = re.compile(
    r"/(?P<site_key>pm-[a-z2-7]{8}-[a-z2-7]{26}-[a-z2-7]{16})-(?P<attempt>[1-9][0-9]{0,6})/(?P<run>[^/]+)$"
)
_REPORT_EVERY = 5.0


class Place(NamedTuple):
    """What the path of a run's directory tells."""

    site_key: str
    attempt: int
    mlflow_run_id: str


class Trace(NamedTuple):
    """A job that started in a directory."""

    job: str
    directory: str


def attempt_path(root: str, site_key: str, attempt: int) -> str:
    """The directory of all that was staged for an attempt."""
    return posixpath.join(root, f"{site_key}-{attempt}")


def run_path(root: str, handle: RunHandle) -> str:
    """The directory of a run, by its handle."""
    return posixpath.join(attempt_path(root, handle.site_key, handle.attempt), handle.mlflow_run_id or "")


def place_of(path: str) -> Place | None:
    """What a path tells; None for one that is no run's directory."""
    found = _RUN.search(path.rstrip("/"))
    return Place(found["site_key"], int(found["attempt"]), found["run"]) if found else None


def cancelled_path(directory: str, job: str) -> str:
    """The mark that it was us who cancelled a job."""
    return posixpath.join(directory, f"{_CANCELLED}{job}")


def log_path(directory: str) -> str:
    """Where a job writes its output."""
    return posixpath.join(directory, LOG)


class RunDirectory:
    """What we put into a run's directory.

    Args:
        client: The site.
        path: The directory.
        piece: Bytes that go into one upload.
    """

    def __init__(self, client: FirecrestClient, path: str, piece: int) -> None:
        self._client, self.path = client, path
        self._piece = min(piece, MAX_PIECE)
        self._sizes: dict[str, int] = {}

    async def fill(self, staged: StagedCode, *, is_new: bool) -> list[str]:
        """Make the directory and send the code, as far as it is not there yet.

        Args:
            staged: The packed code.
            is_new: Whether nothing can be there.

        Returns:
            Lines of bash that put the pieces together, in the job.
        """
        await self._client.mkdir(self.path)
        await self._client.chmod(self.path, "700")
        there = {} if is_new else {item.name: item.bytes for item in await self._client.list(self.path)}
        name = f"mantik-code-{await asyncio.to_thread(_digest, staged.archive)}.tar.gz"
        await self._send(staged.archive, name, there)
        lines = [_unpack(name)]
        if staged.image:
            await self._send(staged.image, f"{staged.image.name}.mantik", there)
            lines.append(_join(f"{staged.image.name}.mantik", staged.image.name))
        return lines

    async def _send(self, file: Path, name: str, there: dict[str, int]) -> None:
        size, reported = await asyncio.to_thread(lambda: file.stat().st_size), monotonic()
        for number, offset in enumerate(range(0, size, self._piece)):
            piece = await asyncio.to_thread(_read, file, offset, self._piece)
            piece_name = f"{name}.{number:04}"
            if there.get(piece_name) != len(piece):
                await self._upload(piece_name, piece)
            if monotonic() - reported > _REPORT_EVERY:
                reported = monotonic()
                run_logger().info(
                    "Sent %d of %d MB of %s to %s", (offset + len(piece)) >> 20, size >> 20, name, self.path
                )

    async def write_token(self, content: bytes) -> None:
        """Write the token file, for nobody else's eyes: the directory is ours alone before it is there."""
        await self._upload(direct.TOKEN_FILE, content)
        await self._client.chmod(posixpath.join(self.path, direct.TOKEN_FILE), "600")

    async def write_record(self, handle: RunHandle) -> None:
        """Write what a handle needs, for who finds the job."""
        await self._upload(RECORD, handle.model_dump_json(exclude={"links"}).encode())

    async def _upload(self, name: str, content: bytes) -> None:
        await self._client.upload(self.path, name, content)
        self._sizes[name] = len(content)

    async def verify(self) -> None:
        """Compare the sizes of all that was sent: an upload into a full quota may leave a part."""
        there = {item.name: item.bytes for item in await self._client.list(self.path)}
        for name, size in self._sizes.items():
            if there.get(name) != size:
                raise RequestFailed(
                    f"{name}: {size} bytes were sent to {self.path}, {there.get(name, 'none')} are there. Is the disk "
                    "quota full?"
                )


async def read_record(client: FirecrestClient, path: str) -> dict[str, Any]:
    """What `write_record` left in a directory; empty where it is gone, or no longer whole."""
    if not path.startswith("/"):
        return {}
    try:
        record = json.loads(await client.download(posixpath.join(path, RECORD)))
        return RunHandle.model_validate(record).model_dump()
    except (NotFound, ValueError):
        return {}


async def listed(client: FirecrestClient, path: str) -> list[str]:
    """The names of what lies in a directory; none where there is no such directory."""
    try:
        return [item.name for item in await client.list(path)]
    except NotFound:
        return []


async def traces(
    client: FirecrestClient, path: str, directories: Collection[str], known: Collection[str]
) -> list[Trace]:
    """The jobs that started in the directories of an attempt, but for those that are known.

    Args:
        client: The site.
        path: See `attempt_path`.
        directories: What lies there.
        known: Ids of jobs.
    """
    found = []
    for name in directories:
        directory = posixpath.join(path, name)
        found += [Trace(job, directory) for job in _started(await listed(client, directory)) if job not in known]
    return found


def _started(names: list[str]) -> Iterator[str]:
    for name in names:
        job = name.removeprefix(STARTED)
        if name != job and job.isalnum():
            yield job


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(MAX_PIECE):
            digest.update(block)
    return digest.hexdigest()[:16]


def _read(file: Path, offset: int, size: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(size)


def _unpack(name: str) -> str:
    return f"""\
if [ -f {name}.0000 ]; then
  cat {name}.* | tar -xzf - && rm -f {name}.* || {{ echo "mantik: the code cannot be unpacked here"; exit 1; }}
fi"""


def _join(pieces: str, name: str) -> str:
    return f"""\
if [ -f '{pieces}.0000' ]; then
  cat '{pieces}'.* > '{name}' && rm -f '{pieces}'.* || {{ echo "mantik: {name} cannot be put together here"; exit 1; }}
fi"""
