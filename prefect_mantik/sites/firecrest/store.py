"""Files of a FirecREST site, below one directory."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone

from prefect_mantik.errors import ConfigurationError, NotFound, NotSupported, ServiceUnavailable
from prefect_mantik.firecrest import FileEntry, FirecrestClient
from prefect_mantik.sites.firecrest.reading import read_piece
from prefect_mantik.sites.store import FileInfo, Store


class FirecrestStore(Store):
    """The files below a directory.

    Args:
        client: The site.
        root: The directory's absolute path, or what gives it.
        site_name: What to call the site.
    """

    def __init__(self, client: FirecrestClient, root: str | Callable[[], Awaitable[str]], site_name: str) -> None:
        self._client, self._root, self._site_name = client, root, site_name

    async def stat(self, path: str) -> FileInfo:
        """See `Store`."""
        found = await self._client.stat(await self._at(path))
        is_directory = found["mode"] & 0o170000 == 0o040000
        size = 0 if is_directory else int(found["size"])
        modified = datetime.fromtimestamp(found["mtime"], timezone.utc)
        return FileInfo(path=_normal(path), is_directory=is_directory, size=size, modified=modified)

    async def list(self, path: str) -> list[FileInfo]:
        """See `Store`."""
        found = await self._client.list(await self._at(path))
        return [_info(_normal(path), item) for item in sorted(found, key=lambda item: item.name)]

    async def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `Store`. Of a file that is too large for one answer only text can be read."""
        size = (await self.stat(path)).size
        end = size if length is None else min(size, offset + length)
        if offset >= end:
            return b""
        largest = (await self._client.about()).largest_upload
        if size <= largest:
            return (await self._client.download(await self._at(path)))[offset:end]
        data = b""
        while len(data) < end - offset:
            piece = await read_piece(self._client, await self._at(path), offset + len(data), size)
            if not piece.exact or not piece.data:
                raise NotSupported(
                    f"{path} at {self._site_name} has {size} bytes and is no text: FirecREST gives at most {largest} "
                    "bytes of such a file, as one answer."
                )
            data += piece.data
        return data[: end - offset]

    async def write(self, path: str, data: bytes) -> None:
        """See `Store`."""
        largest = (await self._client.about()).largest_upload
        if len(data) > largest:
            raise NotSupported(
                f"{path} has {len(data)} bytes, and {self._site_name} takes at most {largest} in one request."
            )
        directory, name = posixpath.split(await self._at(path))
        try:
            await self._client.upload(directory, name, data)
        except NotFound:
            await self._client.mkdir(directory)
            await self._client.upload(directory, name, data)
        there = (await self.stat(path)).size
        if there != len(data):
            raise _cut_short(path, len(data), there, self._site_name)

    async def mkdir(self, path: str) -> None:
        """See `Store`."""
        await self._client.mkdir(await self._at(path))

    async def remove(self, path: str) -> None:
        """See `Store`. That nothing is there raises `NotFound`."""
        if _normal(path) == "/":
            raise ConfigurationError(f"{path!r} is all that {self._site_name} shows us: name what is to be removed.")
        await self._client.remove(await self._at(path))

    async def rename(self, path: str, target: str) -> None:
        """See `Store`. FirecREST moves files in a job of the batch system, which would be charged and may wait."""
        raise NotSupported(
            f"FirecREST renames {path} at {self._site_name} only in a job of the batch system: write it under its "
            "last name."
        )

    async def checksum(self, path: str) -> str:
        """See `Store`."""
        return await self._client.checksum(await self._at(path))

    async def _at(self, path: str) -> str:
        root = self._root if isinstance(self._root, str) else await self._root()
        if ".." in path.split("/"):
            raise ConfigurationError(f"{path!r} leads out of the storage: paths begin at {root} and hold no '..'.")
        return posixpath.normpath(posixpath.join(root, path.strip("/")))


def _normal(path: str) -> str:
    return posixpath.normpath(f"/{path.strip('/')}")


def _info(directory: str, found: FileEntry) -> FileInfo:
    return FileInfo(
        path=posixpath.join(directory, found.name),
        is_directory=found.is_directory,
        size=found.bytes,  # its time bears no zone: left out
    )


def _cut_short(path: str, sent: int, there: int, site_name: str) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"{path}: {sent} bytes were sent to {site_name}, {there} are there. Is the disk quota full?"
    )
