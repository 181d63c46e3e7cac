"""A job at a site: what was asked for, how it fares, and the words its site has for that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

SiteKind = Literal["UNICORE", "FirecREST"]
Hold = Literal["", "UNDEFINED", "QUEUED"]


class JobState(str, Enum):
    """Where a job stands, in our own words."""

    CREATED = "CREATED"
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
    PREEMPTED = "PREEMPTED"
    VANISHED = "VANISHED"

    @property
    def ended(self) -> bool:
        """Whether nothing will happen any more."""
        return self not in _LIVE


_LIVE = {
    JobState.CREATED,
    JobState.STAGING_IN,
    JobState.READY,
    JobState.QUEUED,
    JobState.RUNNING,
    JobState.STAGING_OUT,
}

_UNICORE_WORDS = {
    JobState.CREATED: "READY",
    JobState.STAGING_IN: "STAGINGIN",
    JobState.READY: "READY",
    JobState.QUEUED: "QUEUED",
    JobState.RUNNING: "RUNNING",
    JobState.STAGING_OUT: "STAGINGOUT",
    JobState.COMPLETED: "SUCCESSFUL",
}
_SLURM_WORDS = {
    JobState.CREATED: "PENDING",
    JobState.STAGING_IN: "PENDING",
    JobState.READY: "PENDING",
    JobState.QUEUED: "PENDING",
    JobState.STAGING_OUT: "COMPLETING",
}


class JobFailed(Exception):
    """A job cannot go on; the text is what its site says about it."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What a site's scheduler needs to know, whatever language the job came in.

    Attributes:
        name: The job's name.
        queue: The queue (partition).
        nodes: How many nodes.
        walltime: Seconds it may run.
        script: What runs on the compute node.
        login_shell: Whether a login shell runs the script.
        before: What runs on the login node first.
        after: What runs on the login node at the end.
        before_may_fail: Whether the job goes on when `before` fails.
        after_may_fail: Whether the job is good even when `after` fails.
        environment: The job's own variables.
        output: The file for standard output, in the run directory.
        error: The file for standard error; by default the same.
        ignore_exit_code: Whether an exit code other than 0 is no failure.
        leaves_exit_code: Whether the script writes its exit code to a file, and has not ended well without it.
        on_login_node: Whether the script runs at once and outside the queue.
        not_before: The earliest start, as a point in time.
        umask: The mask for new files.
        description: The job in the language that it came in.
        interpreter: What runs the script, with its arguments; empty: bash.
        spool: The file that the script is kept in; None: one in the run directory.
        variables: What the environment holds beside the site's own.
        bare: Whether the environment holds nothing else.
        append: Whether the output files are added to or begun anew.
        input: The file for standard input.
        requeue: Whether the job is queued again when its node fails.
    """

    name: str
    queue: str
    nodes: int
    walltime: float
    script: str = field(repr=False)
    login_shell: bool = False
    before: str = field(default="", repr=False)
    after: str = field(default="", repr=False)
    before_may_fail: bool = False
    after_may_fail: bool = False
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    output: str = "mantik.log"
    error: str = ""
    ignore_exit_code: bool = False
    leaves_exit_code: bool = False
    on_login_node: bool = False
    not_before: float = 0.0
    umask: int = -1
    description: Mapping[str, Any] = field(default_factory=dict, repr=False)
    interpreter: tuple[str, ...] = ()
    spool: Path | None = None
    variables: dict[str, str] = field(default_factory=dict, repr=False)
    bare: bool = False
    append: bool = True
    input: str = "/dev/null"
    requeue: bool = True


@dataclass(kw_only=True, eq=False)
class Job:
    """One job of one site.

    Attributes:
        signal: What its process was killed by.
        hold_reason: Why it is held, in the batch system's words.
        killer: Who had it ended, if that was not its owner: a user, or the batch system.
        killed: When somebody had it ended; the end itself may come later.
        not_before: The earliest start, should it have been put off.
        attempts: When it started and failed before it was queued again.
        put_off: After how many seconds it may start again, once its node has failed.
        suspended: How many seconds it was held while it ran, up to `held`.
        held: Since when it is held while it runs.
        at_start: Called right before its process starts.
    """

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
    hold: Hold = ""
    hold_reason: str = ""
    signal: int | None = None
    killer: str = ""
    killed: float | None = None
    not_before: float = 0.0
    put_off: float | None = None
    attempts: list[tuple[float, float]] = field(default_factory=list)
    suspended: float = 0.0
    held: float | None = None
    at_start: Callable[[], None] | None = field(default=None, repr=False)
    history: list[tuple[float, JobState]] = field(default_factory=list, repr=False)
    events: list[tuple[float, str]] = field(default_factory=list, repr=False)
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.history.append((self.submitted, self.state))

    @property
    def log(self) -> Path:
        """Where the job writes its output."""
        return self.directory / self.request.output

    def enter(self, state: JobState) -> None:
        """Change the state and remember when."""
        self.state = state
        self.history.append((time.time(), state))

    def age(self, seconds: float) -> None:
        """Move everything that has happened to the job into the past.

        Args:
            seconds: How far.
        """
        self.submitted -= seconds
        self.history = [(moment - seconds, state) for moment, state in self.history]
        self.events = [(moment - seconds, text) for moment, text in self.events]
        self.attempts = [(begun - seconds, ended - seconds) for begun, ended in self.attempts]
        for name in ("started", "ended", "killed", "held"):
            moment = getattr(self, name)
            if moment is not None:
                setattr(self, name, moment - seconds)

    def note(self, text: str) -> None:
        """Write a line into the job's log as its site keeps it."""
        self.events.append((time.time(), text))

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
