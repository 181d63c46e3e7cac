"""Storage resources: a home and a scratch directory for everybody, and the working directory of every job."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect_mantik.sandbox.scheduler import Site
from prefect_mantik.sandbox.unicore.books import Books, Entry
from prefect_mantik.sandbox.unicore.identities import Caller
from prefect_mantik.sandbox.unicore.replies import UnicoreError, iso_time, link

USPACE = "-uspace"
_SHARED = {"HOME": "User's home", "SCRATCH": "Scratch space"}
_UMASK = 0o027


@dataclass
class Storage:
    """A directory with a storage resource in front of it."""

    id: str
    root: Path
    description: str
    entry: Entry | None = None

    @property
    def status(self) -> str:
        """Whether it can be used, in UNICORE's words."""
        if self.root.is_dir():
            return "READY"
        return "ERROR" if self.entry is not None and self.entry.job.state.ended else "INITIALIZING"


@dataclass
class Settings:
    """What callers may change about a storage."""

    umask: int = _UMASK
    tags: list[str] = field(default_factory=list)


class Storages:
    """Finds the storages of a site."""

    def __init__(self, site: Site, books: Books) -> None:
        self._site = site
        self._books = books
        self._settings: dict[tuple[str, str], Settings] = {}

    def find(self, storage_id: str, caller: Caller) -> Storage:
        """Give a storage.

        Raises:
            UnicoreError: 404 if there is none, 403 if it is somebody else's.
        """
        if not caller.login:
            raise UnicoreError(403)
        if storage_id == "HOME":
            return Storage("HOME", self._site.home(caller.login), _SHARED["HOME"])
        if storage_id == "SCRATCH":
            return Storage("SCRATCH", self._site.scratch(caller.login), _SHARED["SCRATCH"])
        entry = self._books.find(storage_id.removesuffix(USPACE)) if storage_id.endswith(USPACE) else None
        if entry is None:
            raise UnicoreError(404)
        if entry.login != caller.login:
            raise UnicoreError(403)
        return Storage(storage_id, entry.job.directory, "Job workspace", entry)

    def listed(self, caller: Caller, *, with_jobs: bool) -> list[str]:
        """Give the ids of the storages of a caller.

        Args:
            caller: Whose.
            with_jobs: Whether the directories of jobs are wanted too.
        """
        if not caller.login:
            return []
        jobs = [f"{entry.id}{USPACE}" for entry in self._books.listed(caller.login)] if with_jobs else []
        return [*_SHARED, *jobs]

    def settings(self, storage: Storage, caller: Caller) -> Settings:
        """Give what was set for a storage."""
        return self._settings.setdefault((storage.id, caller.login), Settings())

    def describe(self, storage: Storage, caller: Caller, base: str) -> dict[str, Any]:
        """Give the properties of a storage.

        Args:
            storage: The storage.
            caller: Who asks.
            base: The site's base URL.
        """
        own = f"{base}/storages/{storage.id}"
        settings = self.settings(storage, caller)
        free = 0 if self._site.quota_full else shutil.disk_usage(self._site.home(caller.login)).free
        entry = storage.entry
        links = {
            "self": link(own),
            "files": link(f"{own}/files", "Files"),
            "action:copy": link(f"{own}/actions/copy", "Copy file 'from' to file 'to'."),
            "action:rename": link(f"{own}/actions/rename", "Rename file 'from' to file 'to'."),
            **({"job": link(f"{base}/jobs/{entry.id}", "Parent job")} if entry else {}),
        }
        return {
            "resourceStatus": storage.status,
            "resourceStatusMessage": "N/A",
            "description": storage.description,
            "mountPoint": f"{storage.root}/",
            "umask": f"{settings.umask:03o}",
            "freeSpace": free,
            "usableSpace": free,
            "filesystemDescription": f"TSI at {self._site.name}-login",
            "protocols": ["BFT"],
            "metadataSupported": False,
            "owner": caller.owner,
            "acl": [],
            "tags": settings.tags,
            **({"terminationTime": iso_time(entry.expires)} if entry else {}),
            "_links": links,
        }
