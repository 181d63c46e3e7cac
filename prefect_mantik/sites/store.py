"""The files of a site, as far as it shows them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime

from pydantic import BaseModel, ConfigDict


class FileInfo(BaseModel):
    """What a store says of one file or directory.

    Attributes:
        path: From the root of the store.
        is_directory: Whether it is a directory.
        size: In bytes; 0 for directories.
        modified: Last change, where the store tells.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    path: str
    is_directory: bool
    size: int = 0
    modified: datetime | None = None


class Store(ABC):
    """Files of one place. Each operation raises `NotSupported` where the place does not have it."""

    @abstractmethod
    async def stat(self, path: str) -> FileInfo:
        """Describe one file or directory; raises `NotFound`."""

    @abstractmethod
    async def list(self, path: str) -> list[FileInfo]:
        """Describe what lies in a directory."""

    @abstractmethod
    async def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read a range of bytes; reading at the end gives none."""

    @abstractmethod
    async def write(self, path: str, data: bytes) -> None:
        """Write a file. Its size is verified."""

    @abstractmethod
    async def mkdir(self, path: str) -> None:
        """Make a directory and its parents."""

    @abstractmethod
    async def remove(self, path: str) -> None:
        """Remove a file or a directory with all in it."""

    @abstractmethod
    async def rename(self, path: str, target: str) -> None:
        """Rename within the store."""

    @abstractmethod
    async def checksum(self, path: str) -> str:
        """SHA-256 in hexadecimal, computed where the file lies."""
