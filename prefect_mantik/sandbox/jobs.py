"""A job at a site: what was asked for, how it fares, and the words its site has for that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Literal
from uuid import UUID, uuid4

SiteKind = Literal["UNICORE", "FirecREST"]


class JobState(str, Enum):
    """Where a job stands, in our own words."""

    STAGING_IN = "STAGING_IN"
    READY = "READY"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    STAGING_OUT = "STAGING_OUT"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    VANISHED = "VANISHED"

    @property
    def ended(self) -> bool:
        """Whether nothing will happen any more."""
        return self not in _LIVE


_LIVE = {JobState.STAGING_IN, JobState.READY, JobState.QUEUED, JobState.RUNNING, JobState.STAGING_OUT}

_UNICORE_WORDS = {
    JobState.STAGING_IN: "STAGINGIN",
    JobState.READY: "READY",
    JobState.QUEUED: "QUEUED",
    JobState.RUNNING: "RUNNING",
    JobState.STAGING_OUT: "STAGINGOUT",
    JobState.COMPLETED: "SUCCESSFUL",
}
_SLURM_WORDS = {
    JobState.STAGING_IN: "PENDING",
    JobState.READY: "PENDING",
    JobState.QUEUED: "PENDING",
    JobState.STAGING_OUT: "COMPLETING",
}


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What a site's scheduler needs to know, whatever language the job came in."""

    name: str
    queue: str
    nodes: int
    walltime: float
    script: str = field(repr=False)
    login_shell: bool = False
    before: str = field(default="", repr=False)
    after: str = field(default="", repr=False)
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    output: str = "mantik.log"


@dataclass(kw_only=True, eq=False)
class Job:
    """One job of one site."""

    site: str
    kind: SiteKind
    owner: str
    number: int
    request: JobRequest
    directory: Path
    on_change: Listener
    id: UUID = field(default_factory=uuid4)
    state: JobState = JobState.STAGING_IN
    message: str = ""
    pid: int | None = None
    exit_code: int | None = None
    submitted: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    ending: JobState | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        """Where the job writes its output."""
        return self.directory / self.request.output

    def word(self, uid: int) -> str:
        """Say the state as the site does.

        Args:
            uid: Who cancels jobs here.
        """
        if self.kind == "UNICORE":
            return _UNICORE_WORDS.get(self.state, "FAILED")
        if self.state is JobState.CANCELLED:
            return f"CANCELLED by {uid}"
        return _SLURM_WORDS.get(self.state) or str(self.state.value)


Listener = Callable[[Job], Awaitable[None]]


def timestamp(seconds: float | None) -> str | None:
    """Write a point in time for an API."""
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat()
