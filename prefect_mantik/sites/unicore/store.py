"""Files of a UNICORE storage: a user's home, a project's directory, or the directory of one job."""

from __future__ import annotations

from prefect_mantik.errors import NotSupported
from prefect_mantik.sites.store import FileInfo, Store
from prefect_mantik.unicore import FileProperties, UnicoreClient
from prefect_mantik.unicore.client import normal


class UnicoreStore(Store):
    """One storage.

    Args:
        client: The site.
        storage: The storage's id there.
        site_name: What to call the site.
    """

    def __init__(self, client: UnicoreClient, storage: str, site_name: str) -> None:
        self._client, self._storage, self._site_name = client, storage, site_name

    async def stat(self, path: str) -> FileInfo:
        """See `Store`."""
        return _info(normal(path), await self._client.stat(self._storage, path))

    async def list(self, path: str) -> list[FileInfo]:
        """See `Store`."""
        found = await self._client.stat(self._storage, path)
        return [_info(name.rstrip("/"), item) for name, item in sorted(found.content.items())]

    async def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `Store`."""
        # A server may hang when it is asked for what lies behind the end of a file.
        size = (await self._client.stat(self._storage, path)).size
        end = size if length is None else min(size, offset + length)
        return await self._client.read(self._storage, path, offset, end - 1) if offset < end else b""

    async def write(self, path: str, data: bytes) -> None:
        """See `Store`."""
        await self._client.write(self._storage, path, data)

    async def mkdir(self, path: str) -> None:
        """See `Store`."""
        await self._client.mkdir(self._storage, path)

    async def remove(self, path: str) -> None:
        """See `Store`. That nothing is there raises `NotFound`."""
        await self._client.stat(self._storage, path)
        await self._client.remove(self._storage, path)

    async def rename(self, path: str, target: str) -> None:
        """See `Store`."""
        await self._client.stat(self._storage, path)
        await self._client.rename(self._storage, path, target)

    async def checksum(self, path: str) -> str:
        """See `Store`. UNICORE has no such call."""
        raise NotSupported(
            f"UNICORE computes no checksums: read {path} from {self._site_name} and compute one, or compare sizes."
        )


def _info(path: str, found: FileProperties) -> FileInfo:
    return FileInfo(
        path=path,
        is_directory=found.is_directory,
        size=0 if found.is_directory else found.size,
        modified=found.last_accessed,
    )
